use proptest::prelude::*;

use super::*;

#[test]
fn bytes_up_are_taken_once_however_often_they_come() {
    let mut tunnel = Tunnel::<u8>::default();
    assert_eq!(tunnel.take(0, b"abc"), Ok(&b"abc"[..]));
    assert_eq!(tunnel.take(0, b"abc"), Ok(&b""[..]));
    assert_eq!(tunnel.take(1, b"bcde"), Ok(&b"de"[..]));
    assert_eq!(tunnel.take(6, b"g"), Err(Misstep::Skipped));
    assert_eq!(tunnel.take(u64::MAX, b"g"), Err(Misstep::Skipped));
    assert_eq!((tunnel.received(), tunnel.check(5), tunnel.check(6)), (5, Ok(()), Err(Misstep::Skipped)));
}

#[test]
fn bytes_down_are_kept_until_a_get_says_that_they_arrived() {
    let mut tunnel = Tunnel::default();
    assert_eq!(tunnel.ask(0, 1), Ok(None));
    assert_eq!(tunnel.answer(), None);
    tunnel.push(b"abc");
    assert_eq!(tunnel.answer(), Some((1, 0, &b"abc"[..])));
    tunnel.push(b"de");
    assert!(!tunnel.has_given_all());
    assert_eq!(tunnel.answer(), None, "nobody asks");
    assert_eq!(tunnel.ask(0, 2), Ok(None), "the answer was lost");
    assert_eq!(tunnel.answer(), Some((2, 0, &b"abcde"[..])));
    assert_eq!((tunnel.ask(3, 3), tunnel.kept_bytes()), (Ok(None), 2));
    assert_eq!(tunnel.answer(), Some((3, 3, &b"de"[..])));
    assert_eq!((tunnel.ask(5, 4), tunnel.kept_bytes()), (Ok(None), 0));
    for wrong in [0, 4, 6, u64::MAX] {
        assert_eq!(tunnel.ask(wrong, 5), Err(Misstep::Offset));
    }
    assert_eq!(tunnel.let_go(), Some((4, 5)));
    assert_eq!(tunnel.let_go(), None);
}

#[test]
fn nothing_can_be_acknowledged_that_was_never_given() {
    let mut tunnel = Tunnel::default();
    tunnel.push(b"abc");
    assert_eq!(tunnel.ask(3, 1), Err(Misstep::Offset));
    assert_eq!((tunnel.holds(), tunnel.kept_bytes()), (false, 3));
}

#[test]
fn of_two_the_later_is_held_and_one_that_is_gone_gets_nothing() {
    let mut tunnel = Tunnel::default();
    assert_eq!(tunnel.ask(0, 1), Ok(None));
    assert_eq!(tunnel.ask(0, 2), Ok(Some(1)));
    assert!(!tunnel.lose(&1) && tunnel.holds());
    assert!(tunnel.lose(&2) && !tunnel.holds());
    tunnel.push(b"abc");
    assert_eq!(tunnel.answer(), None);
}

#[test]
fn an_answer_has_its_limit_and_the_rest_waits() {
    let mut tunnel = Tunnel::default();
    tunnel.push(&[7; ANSWER_BYTES_MAX + 5]);
    assert_eq!(tunnel.ask(0, 1), Ok(None));
    assert_eq!(tunnel.answer().map(|(_, _, bytes)| bytes.len()), Some(ANSWER_BYTES_MAX));
    assert!(!tunnel.has_given_all());
    assert_eq!(tunnel.ask(ANSWER_BYTES_MAX as u64, 2), Ok(None));
    assert_eq!(tunnel.answer().map(|(_, _, bytes)| bytes.len()), Some(5));
    assert!(tunnel.has_given_all());
}

/// What an agent on a bad line does.
#[derive(Clone, Debug)]
enum Step {
    Push(Vec<u8>),
    /// A POST from so far before what the server has, of which so many bytes arrive.
    Post {
        before: usize,
        bytes: usize,
    },
    /// A GET whose answer arrives or does not.
    Get {
        arrives: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 1..300).prop_map(Step::Push),
        (0_usize..50, 0_usize..100).prop_map(|(before, bytes)| Step::Post { before, bytes }),
        any::<bool>().prop_map(|arrives| Step::Get { arrives }),
    ]
}

proptest! {
    #[test]
    fn both_streams_arrive_once_and_in_order(steps in prop::collection::vec(step(), 0..60)) {
        let up: Vec<u8> = (0..10_000_u32).map(|at| (at % 251) as u8).collect();
        let mut tunnel = Tunnel::default();
        let (mut taken, mut pushed, mut heard) = (Vec::new(), Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Push(bytes) => {
                    tunnel.push(&bytes);
                    pushed.extend_from_slice(&bytes);
                }
                Step::Post { before, bytes } => {
                    let from = taken.len() - before.min(taken.len());
                    taken.extend_from_slice(tunnel.take(from as u64, &up[from..from + bytes]).unwrap());
                }
                Step::Get { arrives } => {
                    tunnel.ask(heard.len() as u64, 0).unwrap();
                    if let Some((_, from, bytes)) = tunnel.answer().filter(|_| arrives) {
                        prop_assert_eq!(from, heard.len() as u64);
                        heard.extend_from_slice(bytes);
                    }
                }
            }
        }
        prop_assert_eq!(&taken[..], &up[..taken.len()]);
        prop_assert_eq!(&heard[..], &pushed[..heard.len()]);
        prop_assert_eq!(tunnel.kept_bytes() + heard.len() >= pushed.len(), true);
    }
}
