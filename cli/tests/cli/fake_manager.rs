//! A manager made of canned answers: one request a connection, each kept for the test to look at.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// A request as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// `GET`, `POST`.
    pub(crate) method: String,
    /// Path and query, as they were sent.
    pub(crate) path: String,
    /// The value of `authorization`.
    pub(crate) authorization: Option<String>,
    /// The body; null without one.
    pub(crate) body: Value,
}

/// A manager that answers until the test ends.
pub(crate) struct FakeManager {
    port: u16,
    folder: tempfile::TempDir,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl FakeManager {
    /// Starts one that answers by `answer`: a status and a body.
    pub(crate) fn start(answer: impl Fn(&Request) -> (u16, Value) + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        bgb_daemon::secret::write_new(&folder.path().join("api.token"), b"secret-token\n").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                serve(&connection.unwrap(), &answer, &kept);
            }
        });
        Self { port, folder, requests }
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The file with its token.
    pub(crate) fn token_file(&self) -> PathBuf {
        let folder: &Path = self.folder.path();
        folder.join("api.token")
    }

    /// What came in so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(connection: &TcpStream, answer: &dyn Fn(&Request) -> (u16, Value), kept: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(connection);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let (mut length, mut authorization) = (0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    let request = Request { method, path, authorization, body };
    let (status, body) = answer(&request);
    kept.lock().unwrap().push(request);
    let body = body.to_string();
    let length = body.len();
    let mut connection = connection;
    write!(
        connection,
        "HTTP/1.1 {status} Canned\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: \
         close\r\n\r\n{body}"
    )
    .unwrap();
}
