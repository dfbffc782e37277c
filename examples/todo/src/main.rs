//! `todo serve` answers requests and runs the processors; every other word is a command of espd or espctl, for operating it:
//! `todo status`, `todo trace EVENT`, `todo wait --all`.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use espd::embedded::{EmbeddedPostgres, Options};
use todo::service::{Service, program};
use todo::web::routes;
use tokio::signal::unix::{SignalKind, signal};

/// Where requests are answered.
const ADDRESS: &str = "127.0.0.1:4690";

type Failed = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() != Some("serve") {
        return program().main();
    }
    tracing_subscriber::fmt().with_target(false).with_ansi(std::io::stdout().is_terminal()).init();
    let runtime = tokio::runtime::Runtime::new().expect("the system gives no threads");
    match runtime.block_on(serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), Failed> {
    let stop = asked_to_stop()?;
    let (url, private) = database().await?;
    let (service, running) = Service::start(&url).await?;
    let address: SocketAddr = std::env::var("TODO_LISTEN").as_deref().unwrap_or(ADDRESS).parse()?;
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!(
        "http://{}   the database, for every other command: export DATABASE_URL='{url}'",
        listener.local_addr()?
    );
    axum::serve(listener, routes(service)).with_graceful_shutdown(stop).await?;
    running.stop().await?;
    if let Some(server) = private {
        server.stop().await;
    }
    Ok(())
}

/// Waits for Ctrl-C, or for SIGTERM, which is what `docker stop` and systemd send.
fn asked_to_stop() -> Result<impl Future<Output = ()>, Failed> {
    let mut terminated = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    })
}

/// The database that DATABASE_URL names; without it, a private PostgreSQL that ends with the service.
async fn database() -> Result<(String, Option<EmbeddedPostgres>), Failed> {
    if let Ok(url) = std::env::var("DATABASE_URL") {
        return Ok((url, None));
    }
    let server = EmbeddedPostgres::start_temporary(Options::default()).await?;
    server.create_database("todo", None).await?;
    Ok((server.url("todo"), Some(server)))
}
