//! The manager's API, as a program of the site uses it: typed requests over HTTP on loopback.
//!
//! It knows paths and the token; what an answer means is the tests' business.

use std::time::Duration;

use bgb_protocol::api::{ErrorBody, ErrorCode, PAGE_MAX, PREFIX, Page};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The manager, over its API.
pub(crate) struct Api {
    agent: ureq::Agent,
    base: String,
    token: String,
}

/// Why a request came to nothing.
#[derive(Debug)]
pub(crate) enum ApiFailure {
    /// The manager said why.
    Refused(u16, ErrorBody),
    /// Nobody answered.
    Unreachable(String),
}

impl ApiFailure {
    /// What the manager said.
    #[track_caller]
    pub(crate) fn refusal(self) -> (ErrorCode, String) {
        match self {
            Self::Refused(status, body) => {
                assert_eq!(status, body.code.http_status(), "{body}");
                (body.code, body.error)
            }
            Self::Unreachable(error) => panic!("the manager did not answer: {error}"),
        }
    }
}

impl Api {
    /// The API at `base`, such as `http://127.0.0.1:10124`.
    pub(crate) fn new(base: String, token: String) -> Self {
        let agent = ureq::Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .new_agent();
        Self { agent, base, token }
    }

    /// `GET`.
    pub(crate) fn fetch<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiFailure> {
        let request = self.agent.get(self.url(path)).header("authorization", self.authorization());
        answer(request.call())
    }

    /// `POST`.
    pub(crate) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiFailure> {
        let request = self.agent.post(self.url(path)).header("authorization", self.authorization());
        answer(request.send_json(body))
    }

    /// `PUT`.
    pub(crate) fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiFailure> {
        let request = self.agent.put(self.url(path)).header("authorization", self.authorization());
        answer(request.send_json(body))
    }

    /// Every row of a list; `path` has no query of its own unless it ends with `&`.
    pub(crate) fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ApiFailure> {
        let mut rows = Vec::new();
        let mut after = String::new();
        loop {
            let separator = if path.contains('?') { '&' } else { '?' };
            let page: Page<T> = self.fetch(&format!("{path}{separator}limit={PAGE_MAX}{after}"))?;
            rows.extend(page.items);
            match page.next {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(rows),
            }
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{PREFIX}{path}", self.base)
    }

    fn authorization(&self) -> String {
        format!("Bearer {}", self.token)
    }
}

fn answer<T: DeserializeOwned>(
    answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<T, ApiFailure> {
    let unreachable = |error: ureq::Error| ApiFailure::Unreachable(error.to_string());
    let mut response = answer.map_err(unreachable)?;
    let status = response.status().as_u16();
    // Five agents' inventories or two hundred results are well below it.
    let body =
        response.body_mut().with_config().limit(64 * 1024 * 1024).read_to_vec().map_err(unreachable)?;
    let text = || String::from_utf8_lossy(&body).into_owned();
    if !(200..300).contains(&status) {
        let error = serde_json::from_slice(&body).unwrap_or_else(|error| {
            panic!("status {status} with a body that is no error: {error}: {}", text())
        });
        return Err(ApiFailure::Refused(status, error));
    }
    let body = if body.is_empty() { b"null".as_slice() } else { &body };
    Ok(serde_json::from_slice(body)
        .unwrap_or_else(|error| panic!("an answer of another kind: {error}: {}", text())))
}
