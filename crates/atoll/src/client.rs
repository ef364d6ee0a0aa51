//! A client of a RESP server: one connection, requests out, replies in.
//!
//! Speaks version 2, which every server has, so that the same commands and the load generator work
//! against Redis. Replies are matched to requests by order; [`Client::exchange`] has several
//! under way.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use atoll_resp::{DecodeError, ReplyDecoder, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::failure::{Failure, Result};

/// Time for a connection to be made.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// Time without a byte of a reply; long enough for a command that walks the whole keyspace.
const REPLY_TIME_MAX: Duration = Duration::from_secs(120);

/// A connection to a server.
pub(crate) struct Client {
    addr: SocketAddr,
    stream: TcpStream,
    decoder: ReplyDecoder,
    /// Reads land here before the decoder takes them.
    chunk: Box<[u8]>,
}

impl Client {
    /// Connects, and authenticates if there is a password.
    pub(crate) async fn connect(addr: SocketAddr, password: Option<&str>) -> Result<Client> {
        let stream = match tokio::time::timeout(CONNECT_TIME_MAX, TcpStream::connect(addr)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(Failure::new(format!(
                    "nothing listens on {addr}; start a server with `atoll start`, or name its \
                     address with --resp"
                )));
            }
            Ok(Err(e)) => {
                return Err(Failure::new(format!(
                    "{addr} cannot be reached: {e}; check the address given with --resp"
                )));
            }
            Err(_) => {
                return Err(Failure::new(format!(
                    "{addr} does not answer; check the address given with --resp"
                )));
            }
        };
        // Requests are written whole, so waiting for more to send only adds delay.
        let nodelay = stream.set_nodelay(true);
        let chunk = vec![0; 64 << 10].into_boxed_slice();
        let mut client = Client { addr, stream, decoder: ReplyDecoder::new(), chunk };
        nodelay.map_err(|e| lost(addr, &e.to_string()))?;
        if let Some(password) = password {
            client.call(&["AUTH", password]).await?;
        }
        Ok(client)
    }

    /// Sends a request and waits for its reply. An error reply is a failure.
    pub(crate) async fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<Value> {
        let mut request = Vec::new();
        atoll_resp::request(&mut request, args);
        let mut reply = Value::Null;
        self.exchange(&request, 1, |value| reply = value).await?;
        match reply {
            Value::Error(text) => Err(self.refused(&text)),
            value => Ok(value),
        }
    }

    /// Sends `count` encoded requests and hands their replies to `each`, in order.
    ///
    /// Writes and reads at the same time: a server that waits for us to take its replies would
    /// otherwise wait for ever, while we wait for it to take our requests.
    pub(crate) async fn exchange(
        &mut self,
        requests: &[u8],
        count: u64,
        mut each: impl FnMut(Value),
    ) -> Result<()> {
        let Client { addr, stream, decoder, chunk } = self;
        let addr = *addr;
        let (mut reader, mut writer) = stream.split();
        let write =
            async { writer.write_all(requests).await.map_err(|e| lost(addr, &e.to_string())) };
        let read = async {
            let mut missing = count;
            while missing > 0 {
                if let Some(value) = decoder.next_reply().map_err(|e| broken(addr, &e))? {
                    each(value);
                    missing -= 1;
                    continue;
                }
                match tokio::time::timeout(REPLY_TIME_MAX, reader.read(chunk)).await {
                    Ok(Ok(0)) => return Err(lost(addr, "the server closed it")),
                    Ok(Ok(n)) => decoder.feed(chunk.get(..n).unwrap_or_default()),
                    Ok(Err(e)) => return Err(lost(addr, &e.to_string())),
                    Err(_) => return Err(lost(addr, "no reply came in time")),
                }
            }
            Ok(())
        };
        tokio::try_join!(write, read).map(|_| ())
    }

    /// Makes a failure of an error reply.
    pub(crate) fn refused(&self, error: &[u8]) -> Failure {
        let text = String::from_utf8_lossy(error);
        let next = match text.split(' ').next() {
            Some("NOAUTH") => "; give the password with --password or ATOLL_PASSWORD",
            Some("WRONGPASS") => "; check --password",
            _ => "",
        };
        Failure::new(format!("{} answered: {text}{next}", self.addr))
    }

    /// Makes a failure of a reply whose type does not fit the request.
    pub(crate) fn unexpected(&self, reply: &Value) -> Failure {
        Failure::new(format!(
            "{} answered {reply:?}, which does not fit the command; check that it is a Redis \
             protocol server",
            self.addr
        ))
    }
}

fn lost(addr: SocketAddr, why: &str) -> Failure {
    Failure::new(format!(
        "the connection to {addr} was lost: {why}; see whether the server still runs, and try again"
    ))
}

fn broken(addr: SocketAddr, error: &DecodeError) -> Failure {
    Failure::new(format!("{addr}: {error}; check that --resp names a Redis-protocol port"))
}
