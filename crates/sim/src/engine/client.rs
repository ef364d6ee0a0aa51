//! A connection as a client has it: RESP over a stream of the simulated network.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::net::Stream;
use atoll_env::sync::timeout;
use atoll_resp::{ReplyDecoder, Value};

/// Longest wait for a reply; then the connection is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for a connection: a machine without power does not answer at all.
const CONNECT_MAX: Duration = Duration::from_millis(500);

/// An open connection.
pub struct Connection {
    env: Env,
    stream: Box<dyn Stream>,
    decoder: ReplyDecoder,
    buf: Vec<u8>,
}

impl Connection {
    /// Connects; `None` if nobody answers.
    pub async fn open(env: &Env, address: SocketAddr) -> Option<Connection> {
        let connecting = env.network.connect(address);
        let stream = timeout(&*env.clock, CONNECT_MAX, connecting).await.ok()?.ok()?;
        let decoder = ReplyDecoder::new();
        Some(Connection { env: env.clone(), stream, decoder, buf: vec![0; 4096] })
    }

    /// Sends bytes; false if the connection is lost.
    pub async fn send(&mut self, mut bytes: &[u8]) -> bool {
        let clock = self.env.clock.clone();
        let sending = async {
            while !bytes.is_empty() {
                match poll_fn(|cx| self.stream.poll_write(cx, bytes)).await {
                    Ok(sent) => bytes = &bytes[sent..],
                    Err(_) => return false,
                }
            }
            true
        };
        timeout(&*clock, PATIENCE, sending).await.unwrap_or(false)
    }

    /// Returns the next reply; `None` if the connection is lost or nothing comes.
    ///
    /// # Errors
    /// What comes is not RESP.
    pub async fn receive(&mut self) -> Result<Option<Value>, String> {
        let clock = self.env.clock.clone();
        let receiving = async {
            loop {
                let next = self.decoder.next_reply();
                if let Some(value) = next.map_err(|e| format!("the server's bytes: {e}"))? {
                    return Ok(Some(value));
                }
                let Ok(read) = poll_fn(|cx| self.stream.poll_read(cx, &mut self.buf)).await else {
                    return Ok(None);
                };
                if read == 0 {
                    return Ok(None);
                }
                self.decoder.feed(&self.buf[..read]);
            }
        };
        timeout(&*clock, PATIENCE, receiving).await.unwrap_or(Ok(None))
    }

    /// Sends one command and returns its reply.
    ///
    /// # Errors
    /// What comes is not RESP.
    pub async fn ask(&mut self, args: &[&str]) -> Result<Option<Value>, String> {
        let mut bytes = Vec::new();
        atoll_resp::request(&mut bytes, args);
        if self.send(&bytes).await { self.receive().await } else { Ok(None) }
    }
}
