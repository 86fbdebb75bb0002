//! Whoever publishes to the subscribers of another server: one connection, which waits for what it does.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bgb_protocol::ids::TaskId;

use crate::authority::{Authority, Named};
use crate::client::subscriber::Dialect;
use crate::client::tls::{TlsOfSite, TlsSession};

/// How long the server may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// What a socket is asked for at once.
const READ_BYTES: usize = 4_096;
/// A message is as long as a task's own content.
pub(crate) const MESSAGE_BYTES: usize = 200;

/// See the module.
pub(crate) struct Publisher {
    dialect: Dialect,
    socket: TcpStream,
    tls: TlsSession,
}

impl Publisher {
    /// Connects.
    ///
    /// # Errors
    /// When the server does not want it.
    pub(crate) fn connect(
        dialect: Dialect,
        authority: &Authority,
        server: SocketAddr,
    ) -> anyhow::Result<Self> {
        let issued = authority.issue(Named::Name("publisher"))?;
        let site = TlsOfSite::new(authority.certificate(), dialect.alpn())?;
        let tls = Arc::new(site).device(&issued.certificate, &issued.key)?.session(server.ip(), false)?;
        let mut socket = TcpStream::connect(server).context("the server does not listen")?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(ANSWER))?;
        if dialect.server_speaks_first() {
            let _ = socket.read(&mut [0; 4_096])?;
        }
        let mut publisher = Self { dialect, socket, tls };
        let mut first = Vec::new();
        dialect.connect("publisher", &mut first);
        publisher.shake_hands()?;
        publisher.say(&first)?;
        if dialect == Dialect::Mqtt {
            // Whoever publishes before the connection is acknowledged may be dropped.
            while publisher.hear()?.is_empty() {}
        }
        Ok(publisher)
    }

    fn shake_hands(&mut self) -> anyhow::Result<()> {
        self.tls.write_to(&mut self.socket)?;
        while self.tls.is_handshaking() {
            self.hear()?;
            self.tls.write_to(&mut self.socket)?;
        }
        Ok(())
    }

    fn say(&mut self, plain: &[u8]) -> anyhow::Result<()> {
        self.tls.seal(plain)?;
        self.tls.write_to(&mut self.socket)?;
        Ok(())
    }

    fn hear(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut plain = Vec::new();
        let read = self.tls.read_from(&mut self.socket, &mut [0; READ_BYTES], &mut plain);
        let bytes = read.context("the server does not answer")?;
        anyhow::ensure!(bytes > 0, "the server has ended the publisher's connection");
        Ok(plain)
    }

    /// Publishes one message with this id.
    ///
    /// # Errors
    /// When the connection is gone, or the server refuses.
    pub(crate) fn publish(&mut self, id: TaskId) -> anyhow::Result<()> {
        let message = format!("{:.<MESSAGE_BYTES$}", id.to_string().replace('-', ""));
        let mut out = Vec::new();
        self.dialect.publish(&message, &mut out);
        self.say(&out)?;
        if self.dialect == Dialect::Nchan {
            let mut heard = Vec::new();
            while !heard.windows(4).any(|four| four == b"\r\n\r\n") {
                heard.extend(self.hear()?);
            }
            let text = String::from_utf8_lossy(&heard).into_owned();
            anyhow::ensure!(text.starts_with("HTTP/1.1 20"), "the server does not publish: {text}");
        }
        Ok(())
    }
}
