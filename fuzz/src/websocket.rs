//! WebSocket frames.

use bgb_http::websocket::{Control, Decoder, Fault, Side, encode_control, encode_data};

use crate::bytes::Bytes;

/// What came of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    data: Vec<u8>,
    controls: Vec<Control>,
    fault: Option<Fault>,
    is_closed: bool,
}

/// The first byte says who hears and where the rest is cut: frames say the same however they are cut, nothing is heard that was not there, and what
/// is encoded is decoded again.
pub(crate) fn websocket(data: &[u8]) {
    let mut bytes = Bytes(data);
    let first = bytes.byte();
    let (side, step) =
        (if first & 1 == 0 { Side::Server } else { Side::Client }, usize::from(first >> 1).max(1));
    let data = bytes.0;
    let whole = heard(side, data, data.len());
    assert_eq!(heard(side, data, step), whole, "frames depend on where they are cut");
    let said: usize =
        whole
            .controls
            .iter()
            .map(|control| {
                if let Control::Ping(payload) | Control::Pong(payload) = control { payload.len() } else { 0 }
            })
            .sum();
    assert!(whole.data.len() + said <= data.len(), "more is heard than was said");
    assert!(
        whole.is_closed == whole.controls.iter().any(|control| matches!(control, Control::Close(_)))
            || whole.fault == Some(Fault::Close)
    );
    again(side, &whole.data, data);
}

fn heard(side: Side, bytes: &[u8], step: usize) -> Heard {
    let (mut decoder, mut heard) = (Decoder::new(side), Heard::default());
    for part in bytes.chunks(step.max(1)) {
        if let Err(fault) = decoder.decode(&mut part.to_vec(), &mut heard.data, &mut heard.controls) {
            heard.fault = Some(fault);
            break;
        }
    }
    heard.is_closed = decoder.is_closed();
    heard
}

/// What was heard, said again by ourselves, and a ping behind it.
fn again(side: Side, said: &[u8], ping: &[u8]) {
    let mask = (side == Side::Server).then_some([1, ping.len() as u8, said.len() as u8, 0]);
    let mut bytes = Vec::new();
    encode_data(said, mask, &mut bytes);
    encode_control(&Control::Ping(ping.to_vec()), mask, &mut bytes);
    let heard = heard(side, &bytes, bytes.len());
    assert_eq!((heard.data.as_slice(), heard.fault), (said, None), "a message is not what was said");
    assert_eq!(heard.controls, [Control::Ping(ping[..ping.len().min(125)].to_vec())]);
}
