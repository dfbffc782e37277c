//! A network between a test and its server that fails on command.
//!
//! It listens on TCP and passes everything on to the server's Unix socket, until it is told to reset its
//! connections, to freeze them, to slow them down, or to refuse new ones.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// A running proxy. It ends with the test's runtime.
pub struct Proxy {
    address: SocketAddr,
    database: String,
    /// Written by the test, read by every connection.
    orders: watch::Sender<Orders>,
    /// Written by every connection, read by the test.
    tally: watch::Sender<Tally>,
}

/// What the test wants. A connection made before an order counts for it; one made later does not.
#[derive(Debug, Clone, Default)]
struct Orders {
    resets: u32,
    freezes: u32,
    refuses: bool,
    /// How long whatever either side sends is kept back.
    delay: Duration,
    /// Text in what clients send, and what to put in its place, of the same length.
    replacement: Option<(&'static str, &'static str)>,
    /// What clients send with this text in it is kept back until there is another order.
    held: Option<&'static str>,
}

/// What has happened so far, in numbers of connections.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub accepted: u32,
    pub refused: u32,
    /// Frozen connections that the client has given up.
    pub abandoned: u32,
    /// Accepted connections that are over.
    pub ended: u32,
    /// What was kept back because of a text in it.
    pub held: u32,
}

impl Proxy {
    /// A proxy to the database at `url`, on an embedded server.
    pub async fn start(url: &str) -> Self {
        let direct: PgConnectOptions = url.parse().unwrap();
        let folder = direct.get_socket().expect("an embedded server listens on a Unix socket");
        let socket = folder.join(format!(".s.PGSQL.{}", direct.get_port()));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            database: direct.get_database().unwrap().to_owned(),
            orders: watch::Sender::default(),
            tally: watch::Sender::default(),
        };
        tokio::spawn(accept(listener, socket, proxy.orders.clone(), proxy.tally.clone()));
        proxy
    }

    /// The URL of the database, through the proxy.
    pub fn url(&self) -> String {
        format!("postgres://espd@{}/{}?sslmode=disable", self.address, self.database)
    }

    /// How to connect to the server through the proxy.
    pub fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host(&self.address.ip().to_string())
            .port(self.address.port())
            .username("espd")
            .database(&self.database)
            .ssl_mode(PgSslMode::Disable)
    }

    /// Resets all connections (RST, not FIN).
    pub fn reset(&self) {
        self.orders.send_modify(|orders| orders.resets += 1);
    }

    /// Half-opens all connections: they stay up and swallow whatever either side sends.
    pub fn freeze(&self) {
        self.orders.send_modify(|orders| orders.freezes += 1);
    }

    /// Whether new connections are reset as soon as they are made.
    pub fn refuse(&self, refuses: bool) {
        self.orders.send_modify(|orders| orders.refuses = refuses);
    }

    /// Keeps back for a while whatever either side sends from now on, on all connections.
    pub fn delay(&self, delay: Duration) {
        self.orders.send_modify(|orders| orders.delay = delay);
    }

    /// Garbles what clients send from now on.
    pub fn replace(&self, text: &'static str, with: &'static str) {
        assert_eq!(text.len(), with.len(), "messages carry their length");
        self.orders.send_modify(|orders| orders.replacement = Some((text, with)));
    }

    /// Keeps back what clients send from now on with this text in it, with all that follows on the connection; `None`: lets it go.
    pub fn hold(&self, text: Option<&'static str>) {
        self.orders.send_modify(|orders| orders.held = text);
    }

    /// What has happened so far.
    pub fn tally(&self) -> Tally {
        *self.tally.borrow()
    }

    /// Returns when what has happened so far satisfies `condition`.
    pub async fn wait_until(&self, condition: impl FnMut(&Tally) -> bool) {
        self.tally.subscribe().wait_for(condition).await.unwrap();
    }
}

async fn accept(
    listener: TcpListener,
    socket: PathBuf,
    orders: watch::Sender<Orders>,
    tally: watch::Sender<Tally>,
) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let server = UnixStream::connect(&socket).await;
        match server {
            Ok(server) if !orders.borrow().refuses => {
                tally.send_modify(|tally| tally.accepted += 1);
                let (orders, tally) = (orders.subscribe(), tally.clone());
                tokio::spawn(async move {
                    pass(client, server, orders, tally.clone()).await;
                    tally.send_modify(|tally| tally.ended += 1);
                });
            }
            _ => {
                tally.send_modify(|tally| tally.refused += 1);
                client.set_zero_linger().unwrap();
            }
        }
    }
}

/// Lives one connection's life.
async fn pass(
    mut client: TcpStream,
    mut server: UnixStream,
    mut orders: watch::Receiver<Orders>,
    tally: watch::Sender<Tally>,
) {
    let (mut from_client, mut from_server) = ([0; 8192], [0; 8192]);
    let at_start = orders.borrow_and_update().clone();
    loop {
        let frozen = orders.borrow().freezes > at_start.freezes;
        tokio::select! {
            changed = orders.changed() => {
                if changed.is_err() || orders.borrow().resets > at_start.resets {
                    client.set_zero_linger().unwrap();
                    return;
                }
            }
            read = client.read(&mut from_client) => match read {
                Ok(1..) if frozen => {}
                Ok(length @ 1..) => {
                    keep_back(&orders).await;
                    hold(&from_client[..length], &mut orders, &tally).await;
                    garble(&mut from_client[..length], orders.borrow().replacement);
                    if server.write_all(&from_client[..length]).await.is_err() {
                        return;
                    }
                }
                Ok(0) | Err(_) => {
                    tally.send_modify(|tally| tally.abandoned += u32::from(frozen));
                    return;
                }
            },
            // A frozen connection does not notice that the server is gone.
            read = server.read(&mut from_server), if !frozen => match read {
                Ok(length @ 1..) => {
                    keep_back(&orders).await;
                    if client.write_all(&from_server[..length]).await.is_err() {
                        return;
                    }
                }
                Ok(0) | Err(_) => return,
            },
        }
    }
}

async fn keep_back(orders: &watch::Receiver<Orders>) {
    let delay = orders.borrow().delay;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

async fn hold(bytes: &[u8], orders: &mut watch::Receiver<Orders>, tally: &watch::Sender<Tally>) {
    let is_held = |orders: &Orders| {
        orders.held.is_some_and(|text| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
    };
    if is_held(&orders.borrow()) {
        tally.send_modify(|tally| tally.held += 1);
        // The test may have ended.
        let _ = orders.wait_for(|orders| !is_held(orders)).await;
    }
}

fn garble(bytes: &mut [u8], replacement: Option<(&str, &str)>) {
    let Some((text, with)) = replacement else { return };
    let found = bytes.windows(text.len()).position(|window| window == text.as_bytes());
    if let Some(at) = found {
        bytes[at..at + with.len()].copy_from_slice(with.as_bytes());
    }
}
