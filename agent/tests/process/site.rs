//! A site with its authority, a server to be played, and devices with agents as processes.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bgb_protocol::action::{Action, Parameters};
use bgb_protocol::frame::Frame;
use bgb_protocol::head::{HeadStatement, SignedHead};
use bgb_protocol::ids::{DeviceId, Generation, ServerId, TaskId, UnixMillis};
use bgb_protocol::message::{Abilities, AgentMessage, ServerMessage, TaskPush, Welcome};
use bgb_protocol::result::ResultStatement;
use bgb_protocol::signature::SigningKey;
use bgb_protocol::target_set::TargetSet;
use bgb_protocol::task::{CancelStatement, SignedCancel, SignedTask, TaskStatement};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use tungstenite::{Message, WebSocket};

/// Longest wait for anything: many times what it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

const DEVICE: u32 = 5;

/// A certificate to be issued.
pub struct Certificate {
    pub name: String,
    pub uri: String,
}

impl Certificate {
    pub fn server() -> Self {
        Self { name: "127.0.0.1".to_owned(), uri: "urn:bgb:LAB:server:1".to_owned() }
    }
}

/// Authority and task-signing key.
pub struct Site {
    issuer: Issuer<'static, KeyPair>,
    authority: rcgen::Certificate,
    key: SigningKey,
}

impl Site {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(params, key), authority, key: SigningKey::generate().unwrap().0 }
    }

    pub fn device_uri(number: u32) -> String {
        format!("urn:bgb:LAB:device:{number}:0193f1c2-7d3a-7c55-8a0e-2b9c5d1e6f70")
    }

    pub fn server_pem(&self) -> String {
        self.issue(&Certificate::server(), ExtendedKeyUsagePurpose::ServerAuth).0.pem()
    }

    fn issue(
        &self,
        certificate: &Certificate,
        usage: ExtendedKeyUsagePurpose,
    ) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![certificate.name.clone()]).unwrap();
        params.subject_alt_names.push(SanType::URI(certificate.uri.as_str().try_into().unwrap()));
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    pub fn welcome(&self) -> Welcome {
        let statement = HeadStatement {
            site: "LAB".parse().unwrap(),
            generation: Generation([1; 16]),
            sequence: 1,
            time: now(),
        };
        Welcome {
            server: ServerId(1),
            head: SignedHead::sign(statement, &self.key).bytes().to_vec(),
            keepalive_secs: 900,
            reconnect_window_secs: 5,
            reconnect_slot_secs: None,
            other_servers: Vec::new(),
            abilities: Abilities::ALL,
        }
    }

    pub fn push(&self, number: u8, action: Action) -> ServerMessage {
        let targets = TargetSet::new([DEVICE].into_iter().collect()).unwrap();
        let statement = TaskStatement {
            site: "LAB".parse().unwrap(),
            task: TaskId::from_bytes([number; 16]),
            action: action.code(),
            parameters: Parameters::none(),
            targets: targets.digest(),
            not_before: now(),
            expires: now().plus(3_600_000),
            approval: None,
        };
        let mut proof = Vec::new();
        targets.prove(DeviceId(DEVICE), &mut proof);
        let signed = SignedTask::sign(statement, &self.key).bytes().to_vec();
        ServerMessage::Task(Box::new(TaskPush { signed, proof }))
    }

    pub fn cancel(&self, number: u8) -> ServerMessage {
        let statement = CancelStatement {
            site: "LAB".parse().unwrap(),
            task: TaskId::from_bytes([number; 16]),
            expires: now().plus(3_600_000),
            cancelled: now(),
        };
        ServerMessage::Cancel(SignedCancel::sign(statement, &self.key).bytes().to_vec())
    }
}

fn now() -> UnixMillis {
    UnixMillis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64)
}

/// A listener on loopback with a certificate of the site.
pub struct Server {
    listener: TcpListener,
    config: Arc<ServerConfig>,
}

impl Server {
    pub fn start(site: &Site, certificate: &Certificate) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(site.authority.der().clone()).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let (certificate, key) = site.issue(certificate, ExtendedKeyUsagePurpose::ServerAuth);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"bgb/1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { listener, config: Arc::new(config) }
    }

    /// A port where a WebSocket leads to this server.
    pub fn behind_a_websocket(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = self.listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let server = TcpStream::connect(server).unwrap();
                std::thread::spawn(move || carry(tungstenite::accept(socket.unwrap()).unwrap(), server));
            }
        });
        port
    }

    /// The next connection of an agent.
    pub fn accept(&self) -> Peer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    socket.set_nonblocking(false).unwrap();
                    socket.set_read_timeout(Some(PATIENCE)).unwrap();
                    let connection = ServerConnection::new(Arc::clone(&self.config)).unwrap();
                    return Peer { stream: StreamOwned::new(connection, socket), heard: Vec::new() };
                }
                Err(_) => assert!(Instant::now() < deadline, "no agent comes"),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Carries bytes both ways, looking at either end in turn.
fn carry(mut agent: WebSocket<TcpStream>, mut server: TcpStream) {
    let would_block = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
    for socket in [agent.get_ref(), &server] {
        socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
    }
    let mut bytes = vec![0; 16 * 1024];
    loop {
        match agent.read() {
            Ok(Message::Binary(bytes)) => server.write_all(&bytes).unwrap(),
            Ok(Message::Close(_)) => return,
            Err(tungstenite::Error::Io(error)) if would_block(&error) => {}
            Ok(_) => {}
            Err(_) => return,
        }
        match server.read(&mut bytes) {
            Ok(0) => return,
            Ok(count) => agent.send(Message::Binary(bytes[..count].to_vec().into())).unwrap(),
            Err(error) if would_block(&error) => {}
            Err(_) => return,
        }
    }
}

/// An agent, seen from the server.
pub struct Peer {
    stream: StreamOwned<ServerConnection, TcpStream>,
    heard: Vec<u8>,
}

impl Peer {
    pub fn say(&mut self, message: &ServerMessage) {
        let mut frame = Vec::new();
        message.encode(&mut frame);
        self.say_bytes(&frame);
    }

    pub fn say_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
        self.stream.flush().unwrap();
    }

    /// Says what means nothing, as fast as the line takes it, until the agent hangs up.
    pub fn talk(&mut self) {
        let mut frames = Vec::new();
        for _ in 0..1_000 {
            ServerMessage::ResultKept(TaskId::from_bytes([9; 16])).encode(&mut frames);
        }
        while self.stream.write_all(&frames).is_ok() {}
    }

    pub fn hear(&mut self) -> AgentMessage {
        loop {
            if let Some((frame, used)) = Frame::decode(&self.heard).unwrap() {
                let message = AgentMessage::decode(frame).unwrap().unwrap();
                self.heard.drain(..used);
                return message;
            }
            let mut bytes = [0; 4_096];
            let count = self.stream.read(&mut bytes).unwrap();
            assert!(count > 0, "the agent closed the connection");
            self.heard.extend_from_slice(&bytes[..count]);
        }
    }

    /// The next result, which must be of this task.
    pub fn result_of(&mut self, number: u8) -> ResultStatement {
        self.result_and_output_of(number).0
    }

    pub fn result_and_output_of(&mut self, number: u8) -> (ResultStatement, String) {
        loop {
            if let AgentMessage::Result(result) = self.hear() {
                let statement = result.read().unwrap();
                assert_eq!(statement.task, TaskId::from_bytes([number; 16]));
                return (statement, String::from_utf8(result.output.clone()).unwrap());
            }
        }
    }

    pub fn is_resumed(&self) -> bool {
        self.stream.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Whether the agent ends the connection, whatever it says before; `false` when it says hello after all.
    pub fn is_closed(&mut self) -> bool {
        let mut bytes = [0; 4_096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return true,
                // Requests and hints of a session that was open.
                Ok(count) if bytes[..2] != [0, 1] => self.heard.extend_from_slice(&bytes[..count]),
                Ok(_) => return false,
                Err(error) => return !matches!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
    }
}

/// A device's bundle folder.
pub struct Device {
    folder: tempfile::TempDir,
}

impl Device {
    pub fn new(site: &Site, server: &Server, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = Certificate { name: "device-5".to_owned(), uri: Site::device_uri(DEVICE) };
        let (certificate, key) = site.issue(&identity, ExtendedKeyUsagePurpose::ClientAuth);
        let hex: String = site.key.public().iter().map(|byte| format!("{byte:02x}")).collect();
        let config = format!(
            "{more}\nsite = \"LAB\"\nservers = [\"{}\"]\n[identity]\ntask_keys = [\"{hex}\"]\n",
            server.listener.local_addr().unwrap()
        );
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("agent.toml", &config);
        write("device.pem", &certificate.pem());
        write("device.key", &key.serialize_pem());
        write("authority.pem", &site.authority.pem());
        let device = Self { folder };
        device.set_mode("agent.toml", 0o644);
        device.set_mode("device.key", 0o600);
        device
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn set_mode(&self, name: &str, mode: u32) {
        let path = self.folder().join(name);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    pub fn mode(&self, name: &str) -> u32 {
        std::fs::metadata(self.folder().join(name)).unwrap().permissions().mode() & 0o7777
    }

    pub fn set_scan_command(&self, script: &str) {
        // The paths that follow are the shell's own arguments.
        self.set_scan(&format!("\"sh\", \"-c\", \"{script}\""));
    }

    pub fn set_scan_program(&self, name: &str) {
        self.set_scan(&format!("\"{name}\""));
    }

    fn set_scan(&self, command: &str) {
        let path = self.folder().join("agent.toml");
        let config = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, format!("{config}[scan]\ncommand = [{command}]\n")).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bgb-agent"));
        command.arg("--config").arg(self.folder().join("agent.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn start(&self) -> Agent {
        Agent(self.command().spawn().unwrap())
    }

    /// Runs `--check`; gives what it complains about.
    pub fn check(&self) -> Result<(), String> {
        let output = self.command().arg("--check").output().unwrap();
        if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder().join("CcmNotificationAgent.log")).unwrap_or_default()
    }

    pub fn log_says(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < deadline, "{text:?} is not in the log: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// An agent's process; killed when dropped.
pub struct Agent(Child);

impl Agent {
    /// Waits for the line that says that it is ready.
    pub fn is_ready(&mut self) {
        let mut line = Vec::new();
        let stdout = self.0.stdout.as_mut().unwrap();
        while !line.ends_with(b"\n") {
            let mut byte = [0];
            assert_eq!(stdout.read(&mut byte).unwrap(), 1, "the agent ended before it was ready");
            line.push(byte[0]);
        }
        let line = String::from_utf8(line).unwrap();
        assert!(line.starts_with("{\"ready\":\"bgb-agent\""), "{line}");
    }

    pub fn terminate(&self) {
        signal(self.0.id(), rustix::process::Signal::TERM);
    }

    pub fn kill(&mut self) {
        self.0.kill().unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the agent does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Expects it to end with code 1; gives what it says on standard error.
    pub fn fails(mut self) -> String {
        assert_eq!(self.wait().code(), Some(1));
        let mut text = String::new();
        self.0.stderr.as_mut().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Waits for a child process of this name.
    pub fn child_of(&self, name: &str) -> u32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = descendants(self.0.id()).into_iter().find(|pid| comm(*pid).trim() == name);
            if let Some(pid) = found {
                return pid;
            }
            assert!(Instant::now() < deadline, "no {name} is started");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // A test that failed half way must not leave its scanners behind.
        let children = descendants(self.0.id());
        let _ = self.0.kill();
        let _ = self.0.wait();
        children.into_iter().for_each(kill);
    }
}

fn comm(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

fn descendants(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for task in tasks {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|text| text.parse().ok()) {
            found.push(child);
            found.extend(descendants(child));
        }
    }
    found
}

/// Whether a process is there and no zombie.
fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}

/// Whether a process ends, where a killed one is still on its way.
pub fn is_dead_soon(pid: u32) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    while is_alive(pid) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    !is_alive(pid)
}

fn kill(pid: u32) {
    signal(pid, rustix::process::Signal::KILL);
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    // Gone already is as good.
    let _ = rustix::process::kill_process(pid, signal);
}
