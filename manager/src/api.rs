//! The administrators' API: HTTP on loopback, for whoever has the token.
//!
//! It reads the database through connections of its own and writes nothing: what is to be written becomes an order for the writer
//! thread. It owns the routes, the token and those connections. Law: nothing is looked at before the token is, and the token is compared
//! in constant time; every list is a page, every body has a limit.

use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use bgb_daemon::clock::Now;
use bgb_daemon::disk::Disk;
use bgb_daemon::http_server::{Handler, Request, Response};
use bgb_protocol::api::{ErrorBody, ErrorCode, PREFIX};
use bgb_protocol::signature::sha256;
use bgb_site::store::Queries;
use bgb_site::{Reader, SiteError};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::figures::Figures;
use crate::orders::{Answer, Order};
use crate::refusal::{of_site, refusal};
use crate::writer::OrderSender;
use query::Query;
use resource::Resource;

mod collections;
mod devices;
mod files;
mod policies;
mod query;
mod resource;
mod roads;
mod status;
mod tasks;
#[cfg(test)]
mod tests;

/// Readers that are kept open: as many as requests are served at a time.
const READERS_KEPT: usize = 8;

/// What the API answers from.
pub struct Api {
    /// SHA-256 of the token: of one length, whatever is compared with it.
    token: [u8; 32],
    database: PathBuf,
    readers: Mutex<Vec<Reader>>,
    /// Held by the request that counts roads.
    counting_roads: Mutex<()>,
    orders: OrderSender,
    figures: Arc<Figures>,
    disk: Arc<dyn Disk>,
    bad: PathBuf,
}

/// What a route comes to.
type Routed = Result<Response, ErrorBody>;

impl Api {
    /// Answers for whoever has `token`.
    #[must_use]
    pub fn new(
        token: &[u8],
        database: PathBuf,
        inbox: &std::path::Path,
        disk: Arc<dyn Disk>,
        orders: OrderSender,
        figures: Arc<Figures>,
    ) -> Self {
        Self {
            token: sha256(token.trim_ascii()),
            database,
            readers: Mutex::new(Vec::new()),
            counting_roads: Mutex::new(()),
            orders,
            figures,
            disk,
            bad: inbox.join("bad"),
        }
    }

    /// The function that a server calls with each request.
    #[must_use]
    pub fn handler(self: Arc<Self>) -> Handler {
        Arc::new(move |request| self.answer(&request))
    }

    fn answer(&self, request: &Request) -> Response {
        let response = self.route(request).unwrap_or_else(|error| {
            let response = Response::json(&error).with_status(error.code.http_status());
            match error.code {
                ErrorCode::Unauthorized => response.with_header("www-authenticate", "Bearer"),
                _ => response,
            }
        });
        let parts = query::segments(request.head.path(), PREFIX).unwrap_or_default();
        self.figures.metrics.count_request(parts.first().map(String::as_str), response.status);
        response
    }

    fn route(&self, request: &Request) -> Routed {
        self.check_token(request)?;
        let head = &request.head;
        let Some(resource) = query::segments(head.path(), PREFIX).and_then(|parts| Resource::of(&parts))
        else {
            let error = format!("there is no {}; the API's paths begin with {PREFIX}", head.path());
            return Err(refusal(ErrorCode::UnknownPath, error));
        };
        let query = Query::parse(head.query())?;
        self.serve(&head.method, resource, query, &request.body)
    }

    fn serve(&self, method: &str, resource: Resource, query: Query, body: &[u8]) -> Routed {
        use Resource as R;
        let takes_filters = method == "GET";
        let query = if takes_filters { query } else { query.refuse_all()? };
        match (method, resource) {
            ("GET", R::Status) => self.status(query),
            ("GET", R::Roads) => self.roads(query),
            ("GET", R::Messages) => self.messages(query),
            ("GET", R::Devices) => self.devices(query),
            ("POST", R::Devices) => self.add_device(&parse(body)?),
            ("POST", R::DevicesBulk) => self.add_devices(parse(body)?),
            ("GET", R::Device(name)) => self.device(query, &name),
            ("POST", R::DeviceBlock(name)) => self.order(Order::BlockDevice(name)),
            ("POST", R::DeviceUnblock(name)) => self.order(Order::UnblockDevice(name)),
            ("GET", R::Collections) => self.collections(query),
            ("POST", R::Collections) => self.create_collection(&parse(body)?),
            ("GET", R::Collection(name)) => self.collection(query, &name),
            ("GET", R::Members(name)) => self.members(query, &name),
            ("POST", R::Members(name)) => self.order(Order::ChangeMembers(name, parse(body)?)),
            ("GET", R::Policies) => self.policies(query),
            ("GET", R::Policy(name)) => self.policy(query, &name),
            ("PUT", R::Policy(name)) => self.order(Order::PutPolicy(name, parse(body)?)),
            ("DELETE", R::Policy(name)) => self.order(Order::WithdrawPolicy(name)),
            ("POST", R::TasksPreview) => self.preview(&parse(body)?),
            ("GET", R::Tasks) => self.tasks(query),
            ("POST", R::Tasks) => self.order(Order::StartTask(parse(body)?)),
            ("GET", R::Task(task)) => self.task(query, task),
            ("GET", R::TaskResults(task)) => self.results(query, task),
            ("GET", R::TaskWaiting(task)) => self.waiting(query, task),
            ("POST", R::TaskCancel(task)) => self.order(Order::CancelTask(task)),
            ("GET", R::Files) => self.files(query),
            (method, _) => {
                let error = format!("this path does not take {method}; see the API's description");
                Err(refusal(ErrorCode::MethodNotAllowed, error))
            }
        }
    }

    fn check_token(&self, request: &Request) -> Result<(), ErrorBody> {
        let given = request.head.header("authorization").and_then(|value| value.strip_prefix(b"Bearer "));
        let matches = given
            .is_some_and(|given| verify_slices_are_equal(&sha256(given.trim_ascii()), &self.token).is_ok());
        if !matches {
            let error = "the request does not carry the site's token; send the content of the token file that manager.toml \
                         names as `Authorization: Bearer TOKEN`";
            return Err(refusal(ErrorCode::Unauthorized, error));
        }
        Ok(())
    }

    /// Has an order carried out.
    fn order(&self, order: Order) -> Routed {
        Ok(match self.orders.place(order)? {
            Answer::Devices(devices) => json(&bgb_protocol::api::DeviceBundles { devices }),
            Answer::Device(row) => json(&row),
            Answer::Collection(row) => json(&row),
            Answer::Members(changed) => json(&changed),
            Answer::Policy(row) => json(&row),
            Answer::PolicyWithdrawn => Response::json(&serde_json::json!({ "withdrawn": true })),
            Answer::Task(row) => json(&row),
        })
    }

    /// Asks the database, all of one moment.
    fn read<T>(&self, ask: impl FnOnce(Queries<'_>) -> Result<T, SiteError>) -> Result<T, ErrorBody> {
        let kept = self.readers.lock().pop();
        let opened = kept.map_or_else(|| Reader::open(&self.database), Ok);
        let reader = opened.map_err(|error| of_site(&error))?;
        let answer = reader.snapshot(ask).map_err(|error| of_site(&error))?;
        let mut readers = self.readers.lock();
        if readers.len() < READERS_KEPT {
            readers.push(reader);
        }
        Ok(answer)
    }
}

fn json(value: &impl Serialize) -> Response {
    Response::json(value)
}

/// A request's body. Serde's sentence names the field and what it may be.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ErrorBody> {
    serde_json::from_slice(body).map_err(|error| {
        refusal(ErrorCode::BadRequest, format!("the request's body is not what this path takes: {error}"))
    })
}

fn now() -> Now {
    Now::read()
}
