//! Frames are what they are however they are cut, and each way to get one wrong is refused with its code.

use proptest::prelude::*;

use super::*;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What came of a whole stream.
#[derive(Debug, PartialEq, Eq)]
struct Decoded {
    data: Vec<u8>,
    controls: Vec<Control>,
    fault: Option<Fault>,
    is_closed: bool,
}

fn decode(side: Side, bytes: &[u8], step: usize) -> Decoded {
    let mut decoder = Decoder::new(side);
    let (mut data, mut controls, mut fault) = (Vec::new(), Vec::new(), None);
    for part in bytes.chunks(step.max(1)) {
        if let Err(error) = decoder.decode(&mut part.to_vec(), &mut data, &mut controls) {
            fault = Some(error);
            break;
        }
    }
    Decoded { data, controls, fault, is_closed: decoder.is_closed() }
}

fn heard_by_server(bytes: &[u8]) -> Decoded {
    let whole = decode(Side::Server, bytes, bytes.len());
    for step in [1, 2, 3, 7] {
        assert_eq!(decode(Side::Server, bytes, step), whole, "in steps of {step}");
    }
    whole
}

/// A masked frame with any header bits.
fn raw(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    encode(Opcode::Binary, payload, Some(MASK), &mut frame);
    frame[0] = first;
    frame
}

#[test]
fn the_examples_of_the_rfc_are_decoded() {
    // RFC 6455, 5.7: "Hello", unmasked and masked; of its examples those that are not of text, and these two as bytes.
    assert_eq!(decode(Side::Client, b"\x82\x05Hello", 99).data, b"Hello");
    assert_eq!(heard_by_server(b"\x82\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58").data, b"Hello");
    let ping = heard_by_server(b"\x89\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
    assert_eq!(ping.controls, [Control::Ping(b"Hello".to_vec())]);
    let in_two = decode(Side::Client, b"\x02\x03Hel\x80\x02lo", 99);
    assert_eq!((in_two.data, in_two.fault), (b"Hello".to_vec(), None));
}

#[test]
fn lengths_are_written_as_short_as_they_can_be() {
    for (length, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
        let (mut frame, payload) = (Vec::new(), vec![7; length]);
        encode(Opcode::Binary, &payload, None, &mut frame);
        assert_eq!(frame.len(), header + length);
        assert_eq!(decode(Side::Client, &frame, 1_000).data, payload);
    }
    for long in
        [&b"\x82\xfe\x00\x7d"[..], b"\x82\xff\x00\x00\x00\x00\x00\x00\xff\xff", b"\x82\xff\xff\0\0\0\0\0\0\0"]
    {
        assert_eq!(heard_by_server(long).fault, Some(Fault::Length));
    }
}

#[test]
fn a_control_frame_may_come_within_a_message() {
    let mut bytes = raw(0x02, b"Hel");
    encode(Opcode::Ping, b"?", Some(MASK), &mut bytes);
    bytes.extend(raw(0x00, b"l"));
    encode(Opcode::Pong, b"", Some(MASK), &mut bytes);
    bytes.extend(raw(0x80, b"o"));
    let heard = heard_by_server(&bytes);
    assert_eq!((heard.data, heard.fault), (b"Hello".to_vec(), None));
    assert_eq!(heard.controls, [Control::Ping(b"?".to_vec()), Control::Pong(Vec::new())]);
}

#[test]
fn what_is_wrong_is_refused_with_its_code() {
    let mut unmasked = Vec::new();
    encode(Opcode::Binary, b"a", None, &mut unmasked);
    let giant = |length: u64| [&b"\x82\xff"[..], &length.to_be_bytes()].concat();
    let close = |payload: &[u8]| raw(0x88, payload);
    for (bytes, fault, code) in [
        (raw(0xc2, b"a"), Fault::Reserved, 1002),
        (raw(0x92, b"a"), Fault::Reserved, 1002),
        (raw(0x83, b"a"), Fault::Opcode(3), 1002),
        (raw(0x8f, b"a"), Fault::Opcode(15), 1002),
        (raw(0x81, b"a"), Fault::Text, 1003),
        (unmasked, Fault::Mask, 1002),
        (giant(FRAME_BYTES_MAX + 1), Fault::TooLong, 1009),
        (giant(i64::MAX as u64), Fault::TooLong, 1009),
        (giant(u64::MAX), Fault::Length, 1002),
        (raw(0x09, b"a"), Fault::Control, 1002),
        (raw(0x89, &[0; 126]), Fault::Control, 1002),
        (raw(0x80, b"a"), Fault::Fragment, 1002),
        ([raw(0x02, b"a"), raw(0x82, b"b")].concat(), Fault::Fragment, 1002),
        (close(b"a"), Fault::Close, 1002),
        (close(&[3, 237]), Fault::Close, 1002),
        (close(&[0, 0]), Fault::Close, 1002),
        (close(&[3, 232, 0xff]), Fault::Close, 1002),
    ] {
        let heard = heard_by_server(&bytes);
        assert_eq!((heard.fault, fault.code()), (Some(fault), code), "{bytes:?}");
    }
    let mut masked = Vec::new();
    encode(Opcode::Binary, b"a", Some(MASK), &mut masked);
    assert_eq!(decode(Side::Client, &masked, 1).fault, Some(Fault::Mask));
}

#[test]
fn nothing_is_read_after_the_end() {
    for (payload, code) in [(&b""[..], None), (b"\x03\xe8bye", Some(1_000)), (b"\x0f\xa0", Some(4_000))] {
        let bytes = [raw(0x88, payload), raw(0xff, b"whatever")].concat();
        let heard = heard_by_server(&bytes);
        assert_eq!((heard.controls, heard.fault), (vec![Control::Close(code)], None));
        assert!(heard.is_closed && heard.data.is_empty());
    }
}

#[test]
fn a_stream_that_was_at_fault_stays_so() {
    let (mut decoder, mut data, mut controls) = (Decoder::new(Side::Server), Vec::new(), Vec::new());
    let mut decode = |mut bytes: Vec<u8>| decoder.decode(&mut bytes, &mut data, &mut controls);
    assert_eq!(decode(raw(0x81, b"a")), Err(Fault::Text));
    assert_eq!(decode(raw(0x82, b"a")), Err(Fault::Text));
    assert!(data.is_empty());
}

#[test]
fn what_is_said_at_length_is_heard_whole() {
    let said: Vec<u8> = (0..FRAME_BYTES_MAX * 5 / 2).map(|place| place as u8).collect();
    let mut bytes = Vec::new();
    encode_data(&said, Some(MASK), &mut bytes);
    encode_control(&Control::Close(Some(1_001)), Some(MASK), &mut bytes);
    let heard = decode(Side::Server, &bytes, 10_000);
    assert!(heard.data == said && heard.fault.is_none());
    assert_eq!(heard.controls, [Control::Close(Some(1_001))]);
}

#[test]
fn at_rest_a_decoder_is_small() {
    assert!(size_of::<Decoder>() <= 16, "{}", size_of::<Decoder>());
}

fn frames() -> impl Strategy<Value = Vec<(Vec<u8>, Option<Vec<u8>>)>> {
    let payload = proptest::collection::vec(any::<u8>(), 0..300);
    let ping = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..=125));
    proptest::collection::vec((payload, ping), 1..8)
}

proptest! {
    #[test]
    fn a_stream_comes_out_as_it_went_in(frames in frames(), mask: [u8; 4], step in 1_usize..400) {
        let (mut bytes, mut data, mut controls) = (Vec::new(), Vec::new(), Vec::new());
        for (payload, ping) in frames {
            encode(Opcode::Binary, &payload, Some(mask), &mut bytes);
            data.extend(payload);
            if let Some(ping) = ping {
                encode(Opcode::Ping, &ping, Some(mask), &mut bytes);
                controls.push(Control::Ping(ping));
            }
        }
        let whole = Decoded { data, controls, fault: None, is_closed: false };
        prop_assert_eq!(decode(Side::Server, &bytes, step), whole);
    }

    #[test]
    fn however_it_is_cut_bytes_mean_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..200), step in 1_usize..50) {
        for side in [Side::Server, Side::Client] {
            prop_assert_eq!(decode(side, &bytes, step), decode(side, &bytes, bytes.len()));
        }
    }
}
