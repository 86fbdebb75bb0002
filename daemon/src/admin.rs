//! The page on which a daemon tells how it is, on loopback: `/metrics`, `/healthz`, `/readyz`.
//!
//! It is the same for all of them; what is counted, and when a daemon is ready, each says itself. Law: the page is for this machine
//! only, since it shows a daemon's insides to whoever asks.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::Context as _;

use crate::http_server::{HttpServer, Request, Response};

/// Two scrapers and a person.
const THREADS: usize = 2;
/// Requests have no body; who sends one is told so instead of being cut off.
const BODY_BYTES_MAX: usize = 1024;
/// What Prometheus calls its text format.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether the page may be at this address.
///
/// # Errors
/// When other machines can reach it. `example` is an address that would do.
pub fn check_address(admin: SocketAddr, example: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        admin.ip().is_loopback(),
        "admin is {admin}; it shows the program's insides and is for loopback addresses only, such as {example}"
    );
    Ok(())
}

/// Takes the address. `file` is the configuration that names it.
///
/// # Errors
/// When it cannot be had; with what to change.
pub fn bind(address: SocketAddr, file: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| {
        format!("cannot listen on {address} for metrics; change `admin` in {file} if the port is in use")
    })
}

/// Answers: `metrics` gives the text, `unready` why the daemon cannot do its work at present, if it cannot. Both are called on several
/// threads at once.
///
/// # Errors
/// When the system gives no thread.
pub fn serve(
    listener: TcpListener,
    metrics: impl Fn() -> String + Send + Sync + 'static,
    unready: impl Fn() -> Option<&'static str> + Send + Sync + 'static,
) -> io::Result<HttpServer> {
    let handler = move |request: Request| match (request.head.method.as_str(), request.head.path()) {
        ("GET" | "HEAD", "/metrics") => Response { content_type: CONTENT_TYPE, ..Response::text(metrics()) },
        ("GET" | "HEAD", "/healthz") => Response::text("ok\n"),
        ("GET" | "HEAD", "/readyz") => match unready() {
            None => Response::text("ok\n"),
            Some(why) => Response::error(503, why),
        },
        ("GET" | "HEAD", _) => Response::error(404, "there are /metrics, /healthz and /readyz here"),
        _ => Response::error(405, "only GET is answered here").with_header("allow", "GET, HEAD"),
    };
    HttpServer::start(listener, "admin", THREADS, BODY_BYTES_MAX, Arc::new(handler))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn the_page_tells_metrics_health_and_readiness_and_nothing_else() {
        let is_ready = Arc::new(AtomicBool::new(true));
        let of_page = Arc::clone(&is_ready);
        let unready = move || (!of_page.load(Ordering::Relaxed)).then_some("it rests");
        let listener = bind("127.0.0.1:0".parse().unwrap(), "x.toml").unwrap();
        let server = serve(listener, || "a_total 1\n".to_owned(), unready).unwrap();
        let address = server.local_addr();
        let metrics = ask(address, "GET /metrics").to_lowercase();
        assert!(metrics.starts_with("http/1.1 200"), "{metrics}");
        assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
        assert!(metrics.ends_with("a_total 1\n"), "{metrics}");
        for (request, status) in [
            ("HEAD /metrics", "200"),
            ("GET /healthz", "200"),
            ("GET /readyz", "200"),
            ("GET /", "404"),
            ("GET /metrics/x", "404"),
            ("POST /metrics", "405"),
        ] {
            let answer = ask(address, request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
        }
        is_ready.store(false, Ordering::Relaxed);
        let answer = ask(address, "GET /readyz");
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("it rests"), "{answer}");
        assert!(ask(address, "GET /healthz").starts_with("HTTP/1.1 200"), "it lives all the same");
    }

    #[test]
    fn an_address_that_is_taken_or_that_others_reach_is_refused_with_what_to_do() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = format!("{:#}", bind(taken.local_addr().unwrap(), "x.toml").unwrap_err());
        assert!(error.contains("`admin` in x.toml") && error.contains("in use"), "{error}");
        let error = check_address("0.0.0.0:1".parse().unwrap(), "127.0.0.1:9").unwrap_err().to_string();
        assert!(error.contains("admin is 0.0.0.0:1") && error.contains("such as 127.0.0.1:9"), "{error}");
        assert!(check_address("[::1]:1".parse().unwrap(), "").is_ok());
    }
}
