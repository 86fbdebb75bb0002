//! The fuzzer: `BGB_FUZZ_TARGET` names the target, the arguments are libFuzzer's. `make fuzz` calls it.
#![no_main]

use std::sync::OnceLock;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static RUN: OnceLock<fn(&[u8])> = OnceLock::new();
    let run = RUN.get_or_init(|| {
        let name = std::env::var("BGB_FUZZ_TARGET").unwrap_or_default();
        bgb_fuzz::target(&name).unwrap_or_else(|| {
            let known: Vec<_> = bgb_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
            eprintln!("there is no target {name:?}; there are: {}", known.join(", "));
            std::process::exit(2)
        })
    });
    run(data);
});
