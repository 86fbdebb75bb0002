//! The stream of frames, in both directions, as it comes out of TLS.

use bgb_protocol::frame::Frame;
use bgb_protocol::message::{AgentMessage, ServerMessage, SharedPush};

/// A stream decodes the same however much of it has come, and what is decoded is what would be encoded.
pub(crate) fn frame(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some((frame, used))) = Frame::decode(rest) {
        assert!(used > 0 && used <= rest.len(), "a frame of {used} bytes out of {}", rest.len());
        for cut in [0, used / 2, used - 1] {
            assert!(
                matches!(Frame::decode(&rest[..cut]), Ok(None)),
                "a frame is there before its last byte, or is none any more"
            );
        }
        if let Ok(Some(message)) = AgentMessage::decode(frame) {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            let (again, _) = Frame::decode(&bytes).expect("it was encoded").expect("it is whole");
            assert_eq!(AgentMessage::decode(again), Ok(Some(message)));
        }
        if let Ok(Some(message)) = ServerMessage::decode(frame) {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            let (again, _) = Frame::decode(&bytes).expect("it was encoded").expect("it is whole");
            if let ServerMessage::Task(push) = &message {
                let mut shared = Vec::new();
                SharedPush::new(&push.signed).encode(&push.proof, &mut shared);
                assert_eq!(shared, bytes, "a push whose part is shared is another message");
            }
            assert_eq!(ServerMessage::decode(again), Ok(Some(message)));
        }
        rest = &rest[used..];
    }
}
