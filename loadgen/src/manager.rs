//! The manager's API, as far as a load generator needs it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bgb_protocol::action::Action;
use bgb_protocol::api::{ALL_DEVICES, ErrorBody, PREFIX, StartTask, Target, TaskRow};
use bgb_protocol::ids::TaskId;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longer than any order takes.
const TIMEOUT: Duration = Duration::from_secs(60);
/// A task for everybody is valid for so long: until the last has it, and answers.
const VALID: Duration = Duration::from_secs(3_600);
/// One for a single device: the least that there is, since a site has 1,000 of them at a time.
pub(crate) const VALID_FOR_ONE: Duration = Duration::from_secs(60);

/// A running manager.
pub(crate) struct Manager {
    agent: ureq::Agent,
    base: String,
    token: String,
    site: String,
}

/// What is read of `manager.toml`.
#[derive(serde::Deserialize)]
struct Configuration {
    site: String,
    #[serde(default = "default_listen")]
    listen: String,
    token: std::path::PathBuf,
}

fn default_listen() -> String {
    "127.0.0.1:10124".to_owned()
}

impl Manager {
    /// The manager of the site in `folder`.
    ///
    /// # Errors
    /// Which file is missing or wrong.
    pub(crate) fn of_site(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("manager.toml");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{}: that is no site's folder", path.display()))?;
        let configuration: Configuration =
            toml::from_str(&text).with_context(|| format!("{}", path.display()))?;
        let token = folder.join(&configuration.token);
        let token = std::fs::read_to_string(&token).with_context(|| format!("{}", token.display()))?;
        let agent = ureq::Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT))
            .build()
            .new_agent();
        let base = format!("http://{}", configuration.listen);
        Ok(Self { agent, base, token: token.trim().to_owned(), site: configuration.site })
    }

    /// The site's code.
    pub(crate) fn site(&self) -> &str {
        &self.site
    }

    /// Starts a ping that is valid for so long.
    ///
    /// # Errors
    /// As the manager says.
    pub(crate) fn ping(&self, target: Target, valid: Duration) -> anyhow::Result<TaskId> {
        let (action, validity_seconds) = (Action::Ping, Some(valid.as_secs()));
        let row: TaskRow =
            self.post("/tasks", &StartTask { action, target, validity_seconds, digest: None })?;
        Ok(row.task)
    }

    /// The same for everybody.
    ///
    /// # Errors
    /// As the manager says.
    pub(crate) fn ping_all(&self) -> anyhow::Result<TaskId> {
        self.ping(Target::Collection(ALL_DEVICES.to_owned()), VALID)
    }

    /// A task as it stands.
    ///
    /// # Errors
    /// As the manager says.
    pub(crate) fn task(&self, task: TaskId) -> anyhow::Result<TaskRow> {
        let request = self.agent.get(self.url(&format!("/tasks/{task}")));
        self.answer(request.header("authorization", self.authorization()).call())
    }

    /// Cancels a task.
    ///
    /// # Errors
    /// As the manager says.
    pub(crate) fn cancel_task(&self, task: TaskId) -> anyhow::Result<()> {
        let _: serde_json::Value = self.post(&format!("/tasks/{task}/cancel"), &serde_json::Value::Null)?;
        Ok(())
    }

    /// `POST`.
    ///
    /// # Errors
    /// As the manager says.
    pub(crate) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        let request = self.agent.post(self.url(path)).header("authorization", self.authorization());
        self.answer(request.send_json(body))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{PREFIX}{path}", self.base)
    }

    fn authorization(&self) -> String {
        format!("Bearer {}", self.token)
    }

    fn answer<T: DeserializeOwned>(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> anyhow::Result<T> {
        let mut answer = answer
            .with_context(|| format!("the manager at {} does not answer; is it started?", self.base))?;
        let status = answer.status();
        let body = answer.body_mut().with_config().limit(64 * 1024 * 1024).read_to_vec()?;
        if status.is_success() {
            return Ok(serde_json::from_slice(&body)?);
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(error) => bail!("the manager refuses: {}", error.error),
            Err(_) => bail!("the manager answers with status {status}"),
        }
    }
}
