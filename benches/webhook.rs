//! How fast a webhook reactor delivers to a receiver on this machine, beside a client that sends the same bodies in a
//! loop and keeps account of nothing.
//!
//! `cargo bench --bench webhook`; docs/benchmarks.md says what the figures mean.

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use support::{Arguments, Installation, Report, Server, Spread};
use tokio::net::TcpListener;

const POLL: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(120);

/// How the receiver and the reactor are set.
#[derive(Debug, Clone, Copy)]
struct Case {
    title: &'static str,
    concurrency: usize,
    /// What the receiver takes for a request.
    delay: Duration,
    target: &'static str,
}

const CASES: [Case; 3] = [
    Case { title: "8 at a time", concurrency: 8, delay: Duration::ZERO, target: ">= 2000/s" },
    Case { title: "32 at a time", concurrency: 32, delay: Duration::ZERO, target: ">= 0.6" },
    Case {
        title: "64 at a time, each takes 10 ms",
        concurrency: 64,
        delay: Duration::from_millis(10),
        target: "",
    },
];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let (events, rounds) = (arguments.size(20_000, 1_000), arguments.rounds(5));
    let server = Server::start(&[]).await?;
    server.load_todo_history(events).await?;
    let flush = server.flush_time();
    let bodies = read_bodies(&server).await?;
    let title =
        format!("{events} events to a receiver on this machine, signed, {rounds} rounds, flush {flush:.1?}");
    let report = Report::begin(&title, "deliveries/s");
    for case in CASES {
        let receiver = Receiver::start(case.delay)?;
        let installation =
            Installation::new(&server.url, "warn", &reactor(receiver.address, case.concurrency))?;
        let (mut daemon, mut client) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            server.settle().await?;
            daemon.push(deliver(&installation, &receiver, events).await?);
            installation.espctl(&["reset", "hook", "--to", "0", "--repeat-effects", "--yes"])?;
            client.push(send(&bodies, &receiver, case.concurrency).await?);
        }
        report.row(
            &format!("{}; a plain client", case.title),
            Spread::of(&daemon),
            Spread::of(&client),
            case.target,
        );
    }
    server.stop().await;
    Ok(())
}

fn reactor(receiver: SocketAddr, concurrency: usize) -> String {
    format!(
        "[reactor]\nname = 'hook'\nstart = 'beginning'\nevents = ['*']\n[reactor.webhook]\nurl = 'http://{receiver}/'\n\
         allow_private = true\nconcurrency = {concurrency}\nsecrets = ['whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw']\n"
    )
}

async fn read_bodies(server: &Server) -> anyhow::Result<Vec<Bytes>> {
    let bodies =
        sqlx::query_scalar("select body::text from espd.events order by id").fetch_all(&server.pool).await?;
    Ok(bodies.into_iter().map(|body: String| Bytes::from(body)).collect())
}

/// Lets the daemon deliver everything; deliveries per second from the first request on.
async fn deliver(installation: &Installation, receiver: &Receiver, events: usize) -> anyhow::Result<f64> {
    receiver.forget();
    let daemon = installation.start()?;
    let first = receiver.wait_for(1).await?;
    let last = receiver.wait_for(events).await?;
    daemon.stop()?;
    ensure!(receiver.count() == events, "{} requests for {events} events", receiver.count());
    Ok(events as f64 / (last - first).as_secs_f64())
}

/// Sends the bodies with as many clients at a time; requests per second.
async fn send(bodies: &[Bytes], receiver: &Receiver, concurrency: usize) -> anyhow::Result<f64> {
    receiver.forget();
    let client =
        Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build_http::<Full<Bytes>>();
    let (next, bodies) = (Arc::new(AtomicUsize::new(0)), Arc::new(bodies.to_vec()));
    let begun = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..concurrency {
        let (client, next, bodies) = (client.clone(), Arc::clone(&next), Arc::clone(&bodies));
        let url = format!("http://{}/", receiver.address);
        clients.spawn(async move {
            while let Some(body) = bodies.get(next.fetch_add(1, Ordering::Relaxed)) {
                let request = Request::post(&url).body(Full::new(body.clone()))?;
                let answer = client.request(request).await?;
                answer.into_body().collect().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    ensure!(receiver.count() == bodies.len(), "{} requests", receiver.count());
    Ok(bodies.len() as f64 / begun.elapsed().as_secs_f64())
}

/// A receiver in a thread of its own, which ends with the process.
struct Receiver {
    address: SocketAddr,
    count: Arc<AtomicUsize>,
}

impl Receiver {
    fn start(delay: Duration) -> anyhow::Result<Self> {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let (sender, address) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                sender.send(listener.local_addr()?)?;
                accept(listener, counted, delay).await
            })
        });
        let address = address.recv().context("the receiver does not listen")?;
        Ok(Self { address, count })
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn forget(&self) {
        self.count.store(0, Ordering::Relaxed);
    }

    /// When so many requests had come.
    async fn wait_for(&self, count: usize) -> anyhow::Result<Instant> {
        let deadline = Instant::now() + PATIENCE;
        while self.count() < count {
            ensure!(Instant::now() < deadline, "{} of {count} requests only", self.count());
            tokio::time::sleep(POLL).await;
        }
        Ok(Instant::now())
    }
}

async fn accept(listener: TcpListener, count: Arc<AtomicUsize>, delay: Duration) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let count = Arc::clone(&count);
        let service = service_fn(move |request: Request<Incoming>| {
            let count = Arc::clone(&count);
            async move {
                let received = request.into_body().collect().await.is_ok();
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                count.fetch_add(usize::from(received), Ordering::Relaxed);
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        });
        tokio::spawn(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
        );
    }
}
