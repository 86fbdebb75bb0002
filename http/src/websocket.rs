//! WebSocket (RFC 6455): the upgrade, and frames, as far as a tunnel for bytes needs them.
//!
//! Bytes come in, values go out; nothing here owns a socket or reads a clock. Messages are binary, and where one ends does not matter: what they hold
//! is one stream. No extension is spoken. Law: what is decoded does not depend on how the bytes were split on their way, and no input panics.
//!
//! ```text
//!           header whole                payload whole
//!   Header --------------> Payload --------------------> Header
//!      \                                     ^
//!       `-- of a control frame --> Control --'     a close frame ends it: nothing after it is read
//! ```

mod frame;
mod upgrade;

pub use frame::{Control, Decoder, FRAME_BYTES_MAX, Fault, Side, encode_control, encode_data};
pub use upgrade::{Refusal, accept_key, answer, check_answer, request};
