//! The manager's HTTP API, as the commands use it: requests out, typed answers or failures back.
//!
//! One request at a time on one connection that is kept. It knows paths, the token and how each error of the API becomes
//! an exit code; what an answer means is the commands' business. Law: every request has a deadline, every answer a
//! limit, and a manager that is not there is told with the command that starts it.

use std::io;
use std::time::Duration;

use bgb_protocol::api::{ErrorBody, ErrorCode, PAGE_MAX, PREFIX, Page};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Method, Request};

use crate::endpoint::Endpoint;
use crate::outcome::{Exit, Failure};

/// A connection on loopback is there at once or not at all; the time is for a machine under load.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// The longest that any request may take: adding 1,000 devices, on a slow machine.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);

/// The most bytes of an answer: 1,000 results with 32 KiB of output each, whose JSON may double them.
const ANSWER_BYTES_MAX: u64 = 80 * 1024 * 1024;

/// The manager, reached over its API.
pub(crate) struct Manager {
    agent: ureq::Agent,
    endpoint: Endpoint,
}

/// A path of the API, with names inside it and filters behind it percent-encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiPath(String);

impl ApiPath {
    /// The path of these segments below the API's prefix.
    pub(crate) fn new(segments: &[&str]) -> Self {
        let mut path = PREFIX.to_owned();
        for segment in segments {
            path.push('/');
            encode(segment, &mut path);
        }
        Self(path)
    }

    /// The path with a filter.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.0.push(if self.0.contains('?') { '&' } else { '?' });
        self.0.push_str(name);
        self.0.push('=');
        encode(value, &mut self.0);
        self
    }
}

/// Percent-encodes everything but the unreserved characters (RFC 3986, section 2.3).
fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// Rows of a list, and whether there are more.
#[derive(Debug)]
pub(crate) struct Listed<T> {
    /// The rows.
    pub(crate) rows: Vec<T>,
    /// There are more than were asked for.
    pub(crate) more: bool,
}

impl Manager {
    /// Of an endpoint; nothing is sent yet.
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        let config = ureq::Agent::config_builder()
            // The API is on this machine; a proxy for the rest of the world must not see the token.
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_DEADLINE))
            .timeout_global(Some(REQUEST_DEADLINE))
            .build();
        Self { agent: config.new_agent(), endpoint }
    }

    /// The API's address.
    pub(crate) fn address(&self) -> &str {
        &self.endpoint.base
    }

    /// `GET`.
    ///
    /// # Errors
    /// As every request here: the API's own error with its exit code, or that the manager is not there.
    pub(crate) fn fetch<T: DeserializeOwned>(&self, path: &ApiPath) -> Result<T, Failure> {
        self.request(Method::GET, path, Vec::new())
    }

    /// `POST` with a body.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub(crate) fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &ApiPath,
        body: &B,
    ) -> Result<T, Failure> {
        self.request(Method::POST, path, json(body))
    }

    /// `POST` without a body.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub(crate) fn post_empty<T: DeserializeOwned>(&self, path: &ApiPath) -> Result<T, Failure> {
        self.request(Method::POST, path, Vec::new())
    }

    /// `PUT` with a body.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub(crate) fn put<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &ApiPath,
        body: &B,
    ) -> Result<T, Failure> {
        self.request(Method::PUT, path, json(body))
    }

    /// The first `rows_max` rows of a list, page by page; all of them where `rows_max` is `None`.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub(crate) fn list<T: DeserializeOwned>(
        &self,
        path: &ApiPath,
        rows_max: Option<usize>,
    ) -> Result<Listed<T>, Failure> {
        let mut rows: Vec<T> = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let missing = rows_max.map_or(usize::MAX, |most| most - rows.len());
            let limit = missing.min(PAGE_MAX as usize);
            let mut page_path = path.clone().with("limit", &limit.to_string());
            if let Some(after) = &after {
                page_path = page_path.with("after", after);
            }
            let page: Page<T> = self.fetch(&page_path)?;
            let empty = page.items.is_empty();
            rows.extend(page.items);
            match page.next {
                Some(next) if !empty && rows_max.is_none_or(|most| rows.len() < most) => after = Some(next),
                next => {
                    let more = next.is_some() || rows_max.is_some_and(|most| rows.len() > most);
                    rows.truncate(rows_max.unwrap_or(usize::MAX));
                    return Ok(Listed { rows, more });
                }
            }
        }
    }

    fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &ApiPath,
        body: Vec<u8>,
    ) -> Result<T, Failure> {
        let url = format!("{}{}", self.endpoint.base, path.0);
        let mut request = Request::builder()
            .method(method)
            .uri(url)
            .header("authorization", format!("Bearer {}", self.endpoint.token))
            .header("accept", "application/json");
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(body).map_err(|error| {
            Failure::usage(format!(
                "the request to the manager cannot be made: {error}; is the address right?"
            ))
        })?;
        let mut response = self.agent.run(request).map_err(|error| self.not_reached(&error))?;
        let status = response.status().as_u16();
        let bytes = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_vec()
            .map_err(|error| self.not_reached(&error))?;
        if !(200..300).contains(&status) {
            return Err(refused(status, &bytes, &self.endpoint));
        }
        // An answer without a body is nothing, which JSON writes so.
        let bytes = if bytes.is_empty() { b"null".to_vec() } else { bytes };
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::failed(format!(
                "the answer of the manager at {} is not understood ({error}); is it of another release than this bgb \
                 ({})?",
                self.endpoint.base,
                env!("CARGO_PKG_VERSION")
            ))
        })
    }

    fn not_reached(&self, error: &ureq::Error) -> Failure {
        let Endpoint { base, start_hint, .. } = &self.endpoint;
        let message = match error {
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                format!("no manager answers at {base} (connection refused); start it with: {start_hint}")
            }
            ureq::Error::Timeout(_) => format!(
                "the manager at {base} did not answer in time; what was asked for may have been done all the same: \
                 look before you repeat it; its log bgbmgr.log says what it is busy with"
            ),
            error => format!(
                "the manager at {base} cannot be reached: {error}; if it does not run, start it with: {start_hint}"
            ),
        };
        Failure::new(Exit::Unreachable, message)
    }
}

fn json<B: Serialize>(body: &B) -> Vec<u8> {
    serde_json::to_vec(body).expect("requests hold no map with keys that JSON cannot have")
}

/// The failure that an answer of `status` stands for.
fn refused(status: u16, body: &[u8], endpoint: &Endpoint) -> Failure {
    let Ok(ErrorBody { error, code }) = serde_json::from_slice(body) else {
        return Failure::failed(format!(
            "{} answered with HTTP status {status} and not as a manager does; is the address right?",
            endpoint.base
        ));
    };
    let exit = exit_of(code);
    match code {
        ErrorCode::Unauthorized => Failure::new(
            exit,
            format!(
                "{error} (the token file that is used belongs to another manager, or was renewed: see --token-file)"
            ),
        ),
        ErrorCode::UnknownPath | ErrorCode::MethodNotAllowed => {
            Failure::new(exit, format!("{error} (is the manager of another release than this bgb?)"))
        }
        _ => Failure::new(exit, error),
    }
}

fn exit_of(code: ErrorCode) -> Exit {
    match code {
        ErrorCode::Unauthorized => Exit::Unauthorized,
        ErrorCode::UnknownDevice
        | ErrorCode::UnknownCollection
        | ErrorCode::UnknownPolicy
        | ErrorCode::UnknownTask => Exit::NotFound,
        ErrorCode::NameTaken
        | ErrorCode::BuiltIn
        | ErrorCode::TargetsChanged
        | ErrorCode::TooManyTasks
        | ErrorCode::TaskOver => Exit::Conflict,
        ErrorCode::BadRequest | ErrorCode::TooLarge => Exit::Usage,
        ErrorCode::DatabaseUnavailable | ErrorCode::Unavailable => Exit::Unreachable,
        ErrorCode::UnknownPath | ErrorCode::MethodNotAllowed | ErrorCode::NoTargets | ErrorCode::Internal => {
            Exit::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        Endpoint {
            base: "http://127.0.0.1:9".to_owned(),
            token: "t".to_owned(),
            start_hint: "start it".to_owned(),
        }
    }

    #[test]
    fn names_inside_a_path_are_percent_encoded() {
        let path =
            ApiPath::new(&["collections", "Büro 1/a", "members"]).with("limit", "5").with("name", "a&b");
        assert_eq!(path.0, "/api/v1/collections/B%C3%BCro%201%2Fa/members?limit=5&name=a%26b");
    }

    #[test]
    fn an_error_of_the_api_keeps_its_sentence_and_has_an_exit_code() {
        let body = br#"{"error":"There is no device pc-9.","code":"unknown-device"}"#;
        let failure = refused(404, body, &endpoint());
        assert_eq!(
            (failure.exit(), failure.to_string().as_str()),
            (Exit::NotFound, "There is no device pc-9.")
        );
    }

    #[test]
    fn an_answer_that_is_no_managers_is_told_as_that() {
        let failure = refused(502, b"<html>", &endpoint());
        assert_eq!(failure.exit(), Exit::Failed);
        assert!(failure.to_string().contains("HTTP status 502"), "{failure}");
    }
}
