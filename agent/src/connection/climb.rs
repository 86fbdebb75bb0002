//! A climb: road after road, as the ladder says, until a server answers on one.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bgb_daemon::clock::Now;
use bgb_protocol::ids::UnixMillis;
use bgb_protocol::message::{Road as RoadKind, RoadTaken};

use super::line::Line;
use super::longpoll::LongPoll;
use super::road::{Patience, Road, RoadFault};
use super::tcp::{self, Tcp};
use super::way::Way;
use super::websocket::WebSocket;
use super::{Destination, Network};
use crate::roads::{Idle, Ladder, Rung};

/// Time for the TLS handshake: what a server gives it (docs/promises.md).
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Climbs; what was learned by it is in the ladder.
///
/// # Errors
/// Why there is no connection, for each road that was tried.
pub(super) fn climb(
    ladder: &mut Ladder,
    destination: &Destination,
    network: &Network,
    waker: &OwnedFd,
) -> Result<(Line, RoadTaken), RoadFault> {
    let began = Instant::now();
    let own = || UnixMillis(destination.now.0.saturating_add(began.elapsed().as_millis() as u64));
    let mut faults: Vec<String> = Vec::new();
    while let Some(rung) = ladder.next(Now::read().boot_ms) {
        match try_rung(rung, ladder.idle(rung, own()), destination, network, waker) {
            Ok(line) => {
                let taken = ladder.on_connected(rung, line.road().intercepted_by());
                return Ok((line, taken));
            }
            Err(fault) => {
                tracing::debug!(road = rung.label(), %fault, "a road does not lead to the server");
                faults.push(format!("{}: {fault}", rung.label()));
                let patience = Patience { deadline: began, waker: Some(waker) };
                if patience.is_called_off() {
                    // Nothing is known of the road by that.
                    ladder.on_called_off();
                    break;
                }
                ladder.on_failed(rung, fault.reason);
            }
        }
    }
    Err(RoadFault::new(faults.join("; ")))
}

/// Tries one road: its connection, the session's TLS on it, and whether it is a server that answers.
fn try_rung(
    rung: Rung,
    idle: Idle,
    destination: &Destination,
    network: &Network,
    waker: &OwnedFd,
) -> Result<Line, RoadFault> {
    network.counts.attempts[rung.place()].count();
    let made = try_road(rung, idle, destination, network, waker);
    if made.is_err() {
        network.counts.failures[rung.place()].count();
    }
    made
}

fn try_road(
    rung: Rung,
    idle: Idle,
    destination: &Destination,
    network: &Network,
    waker: &OwnedFd,
) -> Result<Line, RoadFault> {
    let (host, _) =
        destination.server.rsplit_once(':').ok_or_else(|| RoadFault::new("the address has no port"))?;
    let way = || {
        let port = if rung.outer_tls { network.roads.https_port } else { network.roads.http_port };
        let outer = rung.outer_tls.then(|| network.outer.clone());
        let proxy = network.proxies.to(host, port, rung.outer_tls).filter(|_| rung.proxied);
        Way::new(host, port, outer, proxy.cloned())
    };
    let road: Box<dyn Road> = match rung.road {
        RoadKind::Tcp => Box::new(Tcp::new(tcp::connect(&destination.server, Some(waker))?)),
        RoadKind::WebSocket => Box::new(WebSocket::open(&way()?, idle, Some(waker))?),
        RoadKind::LongPoll => Box::new(LongPoll::open(way()?, idle, destination.now, Some(waker))?),
    };
    // Only now: a session takes the ticket of the one before with it, which must not be spent on a server that is not there.
    let session = network.tls.session(host, destination.now, destination.floor).map_err(RoadFault::new)?;
    let mut line = Line::new(road, session);
    if let Err(fault) = line.shake_hands(&Patience::of(HANDSHAKE, Some(waker))) {
        network.tls.take_back(line.into_session());
        return Err(fault);
    }
    let server = line.session().verify_server().map_err(RoadFault::new)?;
    tracing::info!(address = %destination.server, road = rung.label(), %server, "connected");
    Ok(line)
}
