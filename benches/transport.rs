//! What a connection's slot and its TLS at rest cost: `cargo bench -p bgb-server --bench transport`.
//!
//! Slots stand beside `slab`, which has no generations. A record of a connection at rest, whose AEAD is made for it and dropped, stands beside the same
//! by a whole rustls connection, which keeps it.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bgb_server::reactor::slots::Slots;
use bgb_server::tls::opposite::OppositeEnd;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use slab::Slab;

const SLOTS: u32 = 100_000;
/// A task's frame, about.
const FRAME_BYTES: usize = 200;
/// The content type of application data (RFC 8446, 5.1).
const APPLICATION_DATA: u8 = 23;

fn slots(criterion: &mut Criterion) {
    // Each number below SLOTS once, as far apart as can be.
    let order: Vec<u32> =
        (0..SLOTS).map(|number| (u64::from(number) * 7_919 % u64::from(SLOTS)) as u32).collect();
    let mut group = criterion.benchmark_group("slots, 100,000");
    group.throughput(Throughput::Elements(SLOTS.into()));
    let (mut slab, mut slots) = (Slab::new(), Slots::default());
    (0..SLOTS).for_each(|number| _ = slab.insert(u64::from(number)));
    let keys: Vec<_> = (0..SLOTS).map(|number| slots.insert(u64::from(number))).collect();
    group.bench_function("rival, slab: found", |bencher| {
        bencher.iter(|| order.iter().filter_map(|at| slab.get(*at as usize)).sum::<u64>());
    });
    group.bench_function("found", |bencher| {
        bencher.iter(|| order.iter().filter_map(|at| slots.tenant(keys[*at as usize])).sum::<u64>());
    });
    group.bench_function("rival, slab: left and taken again", |bencher| {
        bencher.iter(|| {
            for at in &order {
                let tenant = slab.remove(*at as usize);
                black_box(slab.insert(tenant));
            }
        });
    });
    let mut keys = keys;
    group.bench_function("left and taken again", |bencher| {
        bencher.iter(|| {
            for at in &order {
                let key = &mut keys[*at as usize];
                if let Some(tenant) = slots.remove(*key) {
                    *key = slots.insert(tenant);
                }
            }
        });
    });
}

/// Two whole rustls connections that have shaken hands, by the suite that servers prefer.
fn whole_connections() -> (ServerConnection, ClientConnection) {
    let key = KeyPair::generate().expect("the system has randomness");
    let params = CertificateParams::new(vec!["server.bench".to_owned()]).expect("that is a name");
    let certificate = params.self_signed(&key).expect("it can be signed");
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).expect("it can be a root");
    let cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
    let provider =
        Arc::new(rustls::crypto::CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() });
    let versions = &[&rustls::version::TLS13];
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .and_then(|config| {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key)
        })
        .expect("the server's side is sound");
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("the client's side is sound")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("server.bench").expect("that is a name");
    let mut client = ClientConnection::new(Arc::new(client), name).expect("the client's side is sound");
    let mut server = ServerConnection::new(Arc::new(server)).expect("the server's side is sound");
    while client.is_handshaking() || server.is_handshaking() || server.wants_write() {
        carry(|out| client.write_tls(out), |bytes| hear_server(&mut server, bytes));
        carry(|out| server.write_tls(out), |bytes| hear_client(&mut client, bytes));
    }
    (server, client)
}

fn carry(mut write: impl FnMut(&mut Vec<u8>) -> std::io::Result<usize>, mut hear: impl FnMut(&[u8])) {
    let mut bytes = Vec::new();
    while write(&mut bytes).expect("a vector takes whatever is written") > 0 {}
    if !bytes.is_empty() {
        hear(&bytes);
    }
}

fn hear_server(server: &mut ServerConnection, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        server.read_tls(&mut bytes).expect("a slice can be read");
        server.process_new_packets().expect("the other side is sound");
    }
}

fn hear_client(client: &mut ClientConnection, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).expect("a slice can be read");
        client.process_new_packets().expect("the other side is sound");
    }
}

fn records(criterion: &mut Criterion) {
    use std::io::{Read as _, Write as _};

    let frame = vec![7; FRAME_BYTES];
    let mut group = criterion.benchmark_group("a record of 200 bytes");
    // Short enough that no keys wear out.
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Elements(1));
    let (mut server, mut client) = whole_connections();
    let mut out = Vec::with_capacity(1_024);
    group.bench_function("rival, whole rustls: sealed", |bencher| {
        bencher.iter(|| {
            out.clear();
            server.writer().write_all(black_box(&frame)).expect("there is room");
            server.write_tls(&mut out).expect("a vector takes whatever is written");
        });
    });
    // What the client seals the server opens in the same order; so each is sealed for the one that opens it.
    let mut opened = vec![0; FRAME_BYTES];
    group.bench_function("rival, whole rustls: opened", |bencher| {
        bencher.iter_batched(
            || {
                let mut record = Vec::new();
                client.writer().write_all(&frame).expect("there is room");
                client.write_tls(&mut record).expect("a vector takes whatever is written");
                record
            },
            |record| {
                server.read_tls(&mut record.as_slice()).expect("a slice can be read");
                server.process_new_packets().expect("the other side is sound");
                server.reader().read_exact(&mut opened).expect("it is whole");
            },
            BatchSize::SmallInput,
        );
    });
    for (suite, by_chacha) in [("ChaCha20-Poly1305", true), ("AES-256-GCM", false)] {
        let (mut session, mut opposite) = OppositeEnd::of_a_connection_at_rest(by_chacha);
        group.bench_function(format!("at rest, {suite}: sealed"), |bencher| {
            bencher.iter(|| {
                out.clear();
                session.seal(black_box(&frame), &mut out);
            });
        });
        let (mut plain, mut answered) = (Vec::with_capacity(1_024), Vec::new());
        group.bench_function(format!("at rest, {suite}: opened"), |bencher| {
            bencher.iter_batched(
                || {
                    let mut record = Vec::new();
                    opposite.say(APPLICATION_DATA, &frame, &mut record);
                    record
                },
                |mut record| {
                    plain.clear();
                    session.feed(&mut record, &mut plain, &mut answered).expect("the other side is sound");
                    assert_eq!(plain.len(), FRAME_BYTES);
                },
                BatchSize::SmallInput,
            );
        });
    }
}

criterion_group!(benches, slots, records);
criterion_main!(benches);
