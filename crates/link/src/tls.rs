//! TLS between engines: mutual, 1.3 only, by rustls, as a [`Stream`] over a [`Stream`].
//!
//! Each engine has a certificate of the cluster's authority with two names in it ([`names`]): one of
//! its cluster, which whoever dials asks for, and one of itself, which has to fit what it says of itself
//! in the handshake of the link. So the cluster key says *one of us*, and the certificate says *which*.
//!
//! rustls is used without I/O of its own: bytes go in and out by `read_tls` and `write_tls`, over the
//! stream below. Its time comes from the environment; its randomness does not, since keys are made of
//! it. So what is on the wire is not repeated by a seed, and simulations that have to repeat leave TLS
//! out.
//!
//! # Invariants
//! - Both directions are polled by one task: reading may have to write (a handshake,
//!   a new key) and the other way round, and either wakes the same task.
//! - A stream that ends without TLS's own word for it is an error, not an end: somebody may have cut it.
//! - What is buffered is bounded: 64 KiB to be sent, 16 KiB and a record that were received.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use atoll_env::net::Stream;
use atoll_env::time::Clock;
use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
};

use crate::handshake::Hello;
use crate::id::{ClusterId, EngineId, Role};
use crate::options::{Wrap, Wrapped};

/// Returns the names that an engine's certificate has to have, of the cluster and of the engine: what
/// whoever makes certificates writes into them as alternative names.
pub fn names(cluster: ClusterId, engine: EngineId) -> [String; 2] {
    let of_cluster = format!("c-{cluster}.atoll.internal");
    [of_cluster.clone(), format!("e-{engine}.{of_cluster}")]
}

/// What an engine needs to speak TLS to the others. Cheap to clone.
#[derive(Clone)]
pub struct Certificates {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    cluster: ClusterId,
}

impl Certificates {
    /// Takes the authority's certificate, this engine's and its private key, all as PEM. `cluster` is
    /// the one that the certificate was made for, for a joiner too.
    ///
    /// # Errors
    /// Something cannot be read, does not belong together or is another engine's; the sentence says
    /// what, and what to do.
    pub fn new(
        clock: Arc<dyn Clock>,
        cluster: ClusterId,
        engine: EngineId,
        authority: &[u8],
        certificate: &[u8],
        key: &[u8],
    ) -> Result<Certificates, String> {
        let remedy = "make it again by atoll cert";
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(authority) {
            let added = root
                .map_err(|e| e.to_string())
                .and_then(|root| roots.add(root).map_err(|e| e.to_string()));
            added.map_err(|e| {
                format!("the authority's certificate cannot be read ({e}): {remedy}")
            })?;
        }
        if roots.is_empty() {
            return Err(format!("the authority's file has no certificate: {remedy}"));
        }
        let chain: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_slice_iter(certificate).collect();
        let chain = chain.map_err(|e| format!("the certificate cannot be read ({e}): {remedy}"))?;
        let Some(leaf) = chain.first() else {
            return Err(format!("the certificate's file has no certificate: {remedy}"));
        };
        fits(leaf, cluster, engine).map_err(|why| {
            format!("the certificate is not this engine's ({why}): {remedy}, for engine {engine}")
        })?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|e| format!("the certificate's key cannot be read ({e}): {remedy}"))?;
        let (provider, roots) = (Arc::new(ring::default_provider()), Arc::new(roots));
        let time = Arc::new(WallClock(clock));
        let broken =
            |e: &dyn fmt::Display| format!("the certificate cannot be used ({e}): {remedy}");
        let server = server(&provider, time.clone(), roots.clone(), chain.clone(), key.clone_key());
        let client = client(&provider, time, roots, chain, key);
        Ok(Certificates {
            client: Arc::new(client.map_err(|e| broken(&e))?),
            server: Arc::new(server.map_err(|e| broken(&*e))?),
            cluster,
        })
    }

    /// Returns what puts TLS around the streams of a link, for [`Options::wrap`](crate::Options::wrap).
    pub fn wrap(self) -> Wrap {
        Rc::new(move |stream, role| self.wrap_one(stream, role))
    }

    fn wrap_one(&self, stream: Box<dyn Stream>, role: Role) -> Wrapped {
        let tls = match role {
            Role::Dialler => {
                // The name of the cluster: which engine it is, the check below decides.
                let [name, _] = names(self.cluster, EngineId(0));
                ServerName::try_from(name)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
                    .and_then(|name| {
                        let new = ClientConnection::new(self.client.clone(), name);
                        new.map(Connection::from).map_err(invalid)
                    })
            }
            Role::Acceptor => {
                ServerConnection::new(self.server.clone()).map(Connection::from).map_err(invalid)
            }
        };
        let peer = Rc::new(RefCell::new(None));
        let seen = peer.clone();
        let cluster = self.cluster;
        let check = move |hello: &Hello| match &*seen.borrow() {
            Some(certificate) => {
                if hello.cluster != cluster && hello.cluster != ClusterId::NONE {
                    return Err(format!("it is of cluster {cluster}, not of {}", hello.cluster));
                }
                fits(certificate, cluster, hello.engine)
            }
            None => Err("it has shown none".to_owned()),
        };
        let stream: Box<dyn Stream> = match tls {
            Ok(tls) => {
                Box::new(TlsStream { inner: stream, tls, peer, is_closing: false, failed: None })
            }
            Err(error) => Box::new(Broken(error.to_string())),
        };
        Wrapped { stream, check: Some(Box::new(check)) }
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificates(cluster {})", self.cluster)
    }
}

fn client(
    provider: &Arc<CryptoProvider>,
    time: Arc<WallClock>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_details(provider.clone(), time);
    let builder = builder.with_protocol_versions(&[&TLS13])?.with_root_certificates(roots);
    let mut config = builder.with_client_auth_cert(chain, key)?;
    // Connections live for days: nothing is gained by resuming, and a ticket is one more secret.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn server(
    provider: &Arc<CryptoProvider>,
    time: Arc<WallClock>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, Box<dyn std::error::Error>> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build()?;
    let builder = ServerConfig::builder_with_details(provider.clone(), time);
    let builder = builder.with_protocol_versions(&[&TLS13])?.with_client_cert_verifier(verifier);
    let mut config = builder.with_single_cert(chain, key)?;
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Decides whether a certificate is an engine's.
fn fits(
    certificate: &CertificateDer<'_>,
    cluster: ClusterId,
    engine: EngineId,
) -> Result<(), String> {
    let [_, name] = names(cluster, engine);
    let parsed = ParsedCertificate::try_from(certificate).map_err(|e| e.to_string())?;
    let wanted = ServerName::try_from(name.as_str()).map_err(|e| e.to_string())?;
    verify_server_name(&parsed, &wanted).map_err(|_| format!("it does not have the name {name}"))
}

/// The environment's wall clock, by which certificates begin and end.
struct WallClock(Arc<dyn Clock>);

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.wall().0)))
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WallClock")
    }
}

/// An error of TLS itself, told apart from those of the network by its kind.
fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

struct TlsStream {
    inner: Box<dyn Stream>,
    tls: Connection,
    /// The other side's certificate, once it was verified.
    peer: Rc<RefCell<Option<CertificateDer<'static>>>>,
    /// The other side was told that no more comes.
    is_closing: bool,
    /// Why nothing that comes can be believed any more. Nothing is sent then but an alert.
    failed: Option<rustls::Error>,
}

/// The stream below, as rustls wants to see it.
struct Below<'a, 'b> {
    stream: &'a mut dyn Stream,
    cx: &'a mut Context<'b>,
}

fn ready<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

fn is_pending<T>(result: &io::Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

impl Read for Below<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        ready(self.stream.poll_read(self.cx, buf))
    }
}

impl Write for Below<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        ready(self.stream.poll_write(self.cx, buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TlsStream {
    /// Writes what TLS has to say; pending if the stream below takes no more of it now.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            let written = self.tls.write_tls(&mut Below { stream: &mut *self.inner, cx });
            match written {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(_) if is_pending(&written) => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Throws away what comes after the end, up to the end of the other side. TLS does not look at it:
    /// it has said its last word, and does not expect to be made to say another one.
    fn drain(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let flushed = self.flush(cx);
        for _ in 0..16 {
            match self.inner.poll_read(cx, buf) {
                Poll::Ready(Ok(1..)) => {}
                other => return other,
            }
        }
        cx.waker().wake_by_ref();
        match flushed {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Pending,
        }
    }

    fn check(&self) -> io::Result<()> {
        self.failed.clone().map_or(Ok(()), |error| Err(invalid(error)))
    }

    /// Takes bytes from below and lets TLS look at them; pending if there are none.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let read = self.tls.read_tls(&mut Below { stream: &mut *self.inner, cx });
        if is_pending(&read) {
            return Poll::Pending;
        }
        if let Err(error) = read {
            return Poll::Ready(Err(error));
        }
        if let Err(error) = self.tls.process_new_packets() {
            // The other side is told, if it takes that at once.
            let _ = self.flush(cx);
            self.failed = Some(error.clone());
            return Poll::Ready(Err(invalid(error)));
        }
        if !self.tls.is_handshaking() && self.peer.borrow().is_none() {
            let first = self.tls.peer_certificates().and_then(<[_]>::first);
            *self.peer.borrow_mut() = first.map(|first| first.clone().into_owned());
        }
        Poll::Ready(Ok(()))
    }
}

impl Stream for TlsStream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.check()?;
        if self.is_closing {
            return self.drain(cx, buf);
        }
        loop {
            // What was accepted to be written leaves, whoever polls.
            if let Poll::Ready(Err(error)) = self.flush(cx) {
                return Poll::Ready(Err(error));
            }
            let read = self.tls.reader().read(buf);
            if !is_pending(&read) {
                return Poll::Ready(read);
            }
            match self.fill(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        // What is buffered goes first: the buffer is bounded, and so is what we say was written.
        match self.flush(cx) {
            Poll::Ready(Ok(())) => {}
            other => return other.map_ok(|()| 0),
        }
        let written = self.tls.writer().write(buf)?;
        if let Poll::Ready(Err(error)) = self.flush(cx) {
            return Poll::Ready(Err(error));
        }
        if written == 0 && !buf.is_empty() {
            // Only before the handshake is done: whoever reads moves it on, and is woken for it.
            return Poll::Pending;
        }
        Poll::Ready(Ok(written))
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let is_first = !std::mem::replace(&mut self.is_closing, true);
        if is_first && self.failed.is_none() && !self.tls.is_handshaking() {
            self.tls.send_close_notify();
        }
        match self.flush(cx) {
            Poll::Ready(Ok(())) => self.inner.poll_shutdown(cx),
            other => other,
        }
    }
}

/// A stream on which TLS could not even begin.
struct Broken(String);

impl Broken {
    fn error<T>(&self) -> Poll<io::Result<T>> {
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, self.0.clone())))
    }
}

impl Stream for Broken {
    fn poll_read(&mut self, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
        self.error()
    }

    fn poll_write(&mut self, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        self.error()
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.error()
    }
}
