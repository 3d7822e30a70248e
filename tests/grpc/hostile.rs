//! Clients that mean harm, or are broken: what each is answered, and that others are served meanwhile. What needs the memory of
//! a process, or very many connections, is in `tests/hostile.rs`.

use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use majorityd::proto::v1;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Code, Status};

use crate::metrics::scraped;
use crate::raw_http2::*;
use crate::stage::*;

const GET_LOCK: &str = "/majority.v1.LockService/GetLock";
const CONSUME: &str = "/majority.v1.QueueService/Consume";

/// Somebody who behaves is served, on a connection of their own.
pub async fn others_are_served(served: &Served) {
    get(&mut served.client().await, "orders").await;
}

/// A connection on which calls are made by hand. Pings are answered.
async fn by_hand(served: &Served) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(served.address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    start(async move { drop(connection.await) });
    sender
}

/// Begins a call; what is sent goes out as it is, and the request stays open unless told otherwise.
pub async fn begin(
    sender: &SendRequest<Bytes>,
    path: &str,
    headers: &[(&'static str, &'static str)],
    bytes: Vec<u8>,
    end: bool,
) -> (ResponseFuture, h2::SendStream<Bytes>) {
    let mut request = http::Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut sender = within(sender.clone().ready()).await.unwrap();
    let (answer, mut body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    body.send_data(bytes.into(), end).unwrap();
    (answer, body)
}

/// The status of an answer, in its headers or after its body.
pub async fn status_of(answer: ResponseFuture) -> Status {
    let answer = within(answer).await.unwrap();
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return status;
    }
    let mut body = answer.into_body();
    while let Some(data) = within(body.data()).await {
        data.unwrap();
    }
    let trailers = within(body.trailers()).await.unwrap().expect("trailers");
    Status::from_header_map(&trailers).expect("a status")
}

async fn answer_to(
    served: &Served,
    path: &str,
    headers: &[(&'static str, &'static str)],
    bytes: Vec<u8>,
) -> Status {
    let sender = by_hand(served).await;
    let (answer, _body) = begin(&sender, path, headers, bytes, true).await;
    status_of(answer).await
}

#[tokio::test]
async fn what_is_not_http2_is_closed() {
    let (_cluster, served, _client) = alone().await;
    let noise: Vec<u8> =
        (0..100_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let requests: [&[u8]; 3] = [
        b"\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        // The beginning of TLS.
        &[
            0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0,
        ],
        &noise,
    ];
    for request in requests {
        let mut raw = Raw::connect(served.address).await;
        raw.send(request).await;
        // A reset is as good as an end.
        let mut answer = Vec::new();
        let _ = within(raw.0.read_to_end(&mut answer)).await;
        assert!(answer.len() < 1_000 && !answer.starts_with(b"HTTP/1"), "{answer:?}");
        others_are_served(&served).await;
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// Begins as the preface of HTTP/2 does, and is shorter.
const POST: &[u8] = b"POST / HTTP/1.1\r\n\r\n";

/// All that is answered to these bytes, sent in pieces.
async fn answer_to_bytes(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), pieces: &[&[u8]]) -> String {
    for piece in pieces {
        stream.write_all(piece).await.unwrap();
        stream.flush().await.unwrap();
        pause().await;
    }
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// Mechanism: nothing is written before it is seen what the client speaks.
#[tokio::test]
async fn a_client_of_http1_is_told_in_words_what_the_port_is() {
    let mut cluster = Cluster::new();
    cluster.grpc.operators = Some("127.0.0.1:7481".parse().unwrap());
    let socket = tempfile::tempdir().unwrap();
    let socket = socket.path().join("m.sock");
    let served = cluster.daemon_on(tokio::net::UnixListener::bind(&socket).unwrap()).await;
    let large = [POST, &[b'x'; 200_000]].concat();
    let single: Vec<&[u8]> = POST.chunks(1).collect();
    for pieces in
        [&[GET][..], &[POST], &[&GET[..1], &GET[1..]], &[&POST[..1], &POST[1..]], &single, &[&large]]
    {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let answer = answer_to_bytes(&mut stream, pieces).await;
        assert!(answer.starts_with("HTTP/1.1 505 "), "{answer}");
        assert!(answer.contains("speaks gRPC, over HTTP/2 alone"), "{answer}");
        assert!(answer.ends_with("http://127.0.0.1:7481/.\n"), "{answer}");
        others_are_served(&served).await;
    }
    let mut unix = tokio::net::UnixStream::connect(&socket).await.unwrap();
    assert!(answer_to_bytes(&mut unix, &[GET]).await.starts_with("HTTP/1.1 505 "));
    let http1 = [("reason", "http1")];
    scraped(&served, |now| now.sum("majorityd_grpc_connections_refused_total", &http1) == 7.0).await;
}

/// Mechanism: who has been told is given up, too.
#[tokio::test]
async fn a_client_of_http1_that_stays_is_ended() {
    let mut cluster = Cluster::new();
    cluster.grpc.opening_timeout = Duration::from_millis(300);
    let served = cluster.daemon().await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let answer = answer_to_bytes(&mut stream, &[GET]).await;
    assert!(answer.starts_with("HTTP/1.1 505 "), "{answer}");
    scraped(&served, |now| now.sum("majorityd_grpc_connections", &[]) == 0.0).await;
}

/// Mechanism: the preface has a time of its own.
#[tokio::test]
async fn a_connection_that_does_not_say_what_it_speaks_is_ended() {
    let mut cluster = Cluster::new();
    cluster.grpc.opening_timeout = Duration::from_millis(300);
    let served = cluster.daemon().await;
    // Of this there is no end but the daemon's.
    let mut silent = Raw::connect(served.address).await;
    let mut slow = Raw::connect(served.address).await;
    let quick = served.client().await;
    let trickle = async {
        for byte in &PREFACE[..PREFACE.len() - 1] {
            if slow.0.write_all(&[*byte]).await.is_err() {
                return;
            }
            pause().await;
        }
        within(slow.until_closed()).await;
    };
    let (_, frames) = tokio::join!(trickle, within(silent.until_closed()));
    assert!(frames.iter().all(|frame| frame.kind == SETTINGS || frame.kind == GOAWAY), "{frames:?}");
    // Whoever has said so may be silent for as long as they like.
    get(&mut quick.clone(), "orders").await;
    others_are_served(&served).await;
}

/// Mechanism: who hangs half way in a frame can't answer a ping.
#[tokio::test]
async fn a_connection_that_stops_within_its_headers_is_ended() {
    let mut cluster = Cluster::new();
    cluster.grpc.keepalive_interval = Duration::from_millis(200);
    cluster.grpc.keepalive_timeout = Duration::from_millis(200);
    let served = cluster.daemon().await;
    let block = call_headers(GET_LOCK);
    for cut in [frame(HEADERS, 0, 1, &block), frame(HEADERS, END_HEADERS, 1, &block)[..20].to_vec()] {
        let mut raw = Raw::open(served.address).await;
        raw.send(&cut).await;
        within(raw.until_closed()).await;
        others_are_served(&served).await;
    }
}

/// Mechanism: a request has a time to arrive in, also where its client answers pings and gave the call an hour.
#[tokio::test]
async fn a_request_that_does_not_arrive_is_given_up() {
    let mut cluster = Cluster::new();
    cluster.grpc.arrival_timeout = Duration::from_millis(300);
    let served = cluster.daemon().await;
    let sender = by_hand(&served).await;
    let whole = message(&v1::GetLockRequest { name: "orders".into() }.encode_to_vec());
    let parts = [vec![], whole[..3].to_vec(), whole[..7].to_vec(), whole];
    let mut begun = Vec::new();
    for part in parts {
        begun.push(begin(&sender, GET_LOCK, &[("grpc-timeout", "1H")], part, false).await);
    }
    // Of a stream, a message that has begun.
    let open = v1::ConsumeRequest::default().encode_to_vec();
    let half = [message(&open), message(&[1; 100])[..50].to_vec()].concat();
    begun.push(begin(&sender, CONSUME, &[], half, false).await);
    let last = begun.pop();
    for (answer, _body) in begun {
        let status = status_of(answer).await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
        assert_eq!(metadata(&status, "arrival_timeout"), "300ms");
    }
    // Its first message was none that may come first.
    let (answer, _body) = last.unwrap();
    assert_eq!(reason(&status_of(answer).await), "INVALID_COMMAND");
    others_are_served(&served).await;
}

/// A stream may be silent between two messages for as long as it likes, and not within one.
#[tokio::test]
async fn a_message_of_a_stream_that_does_not_arrive_ends_the_stream() {
    let mut cluster = Cluster::new();
    cluster.grpc.arrival_timeout = Duration::from_millis(200);
    let served = cluster.daemon().await;
    let sender = by_hand(&served).await;
    let open =
        v1::consume_request::Open { queue: "jobs".into(), max_in_flight: Some(1), ..Default::default() };
    let open = v1::ConsumeRequest { command: Some(v1::consume_request::Command::Open(open)) };
    let (answer, mut body) = begin(&sender, CONSUME, &[], message(&open.encode_to_vec()), false).await;
    let answer = within(answer).await.unwrap();
    for _ in 0..50 {
        pause().await;
    }
    body.send_data(message(&[1; 100])[..50].to_vec().into(), false).unwrap();
    let mut events = answer.into_body();
    while let Some(data) = within(events.data()).await {
        data.unwrap();
    }
    let trailers = within(events.trailers()).await.unwrap().expect("trailers");
    let status = Status::from_header_map(&trailers).expect("a status");
    assert_eq!(metadata(&status, "arrival_timeout"), "200ms");
}

/// Mechanism: bytes on their way are counted by what a message announces.
#[tokio::test]
async fn requests_that_announce_much_and_send_nothing_do_not_take_all_memory() {
    let (_cluster, served, _client) = alone().await;
    let sender = by_hand(&served).await;
    let announced = [&[0][..], &(5_u32 << 20).to_be_bytes()].concat();
    let fit = majorityd::limits::ARRIVING_BYTES_PER_CONNECTION_MAX / (5 << 20);
    let mut begun = Vec::new();
    for _ in 0..fit {
        begun.push(begin(&sender, GET_LOCK, &[], announced.clone(), false).await);
    }
    for _ in 0..50 {
        let (answer, _body) = begin(&sender, GET_LOCK, &[], announced.clone(), false).await;
        let status = status_of(answer).await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
        assert_eq!(metadata(&status, "limit"), "arriving_bytes_per_connection_max");
        assert_eq!(metadata(&status, "bytes"), (5 << 20).to_string());
    }
    // Small requests are still taken there, and large ones elsewhere.
    let small = message(&v1::GetLockRequest { name: "orders".into() }.encode_to_vec());
    let (answer, _body) = begin(&sender, GET_LOCK, &[], small, true).await;
    assert_eq!(status_of(answer).await.code(), Code::Ok);
    let large = v1::SetRequest {
        key: "k".into(),
        content: Some(v1::set_request::Content::Value(vec![7; 1 << 20].into())),
        ..Default::default()
    };
    within(served.kv().await.set(large)).await.unwrap();
    // Who gives up makes room.
    begun.clear();
    within(async {
        loop {
            let (mut answer, mut body) = begin(&sender, GET_LOCK, &[], announced.clone(), false).await;
            for _ in 0..5 {
                pause().await;
            }
            if futures::poll!(&mut answer).is_pending() {
                body.send_reset(h2::Reason::CANCEL);
                return;
            }
        }
    })
    .await;
}

/// The fault is the client's, and nothing that an operator has to see.
#[tokio::test]
async fn what_can_not_be_read_is_an_invalid_message() {
    let (_cluster, served, _client) = alone().await;
    // Field 1, a text of two bytes that are none.
    let no_text = vec![0x0a, 0x02, 0xff, 0xfe];
    let no_field = vec![0xff; 20];
    let cut_short = vec![0x0a, 0x7f, b'x'];
    for bytes in [&no_text, &no_field, &cut_short] {
        let status = answer_to(&served, GET_LOCK, &[], message(bytes)).await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_MESSAGE"));
    }
    let mut too_short = message(&no_text);
    too_short.truncate(7);
    let mut compressed = message(&no_text);
    compressed[0] = 1;
    let mut nonsense = message(&no_text);
    nonsense[0] = 77;
    for bytes in [too_short, compressed, nonsense] {
        let status = answer_to(&served, GET_LOCK, &[], bytes.clone()).await;
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, "INVALID_MESSAGE"),
            "{bytes:?}"
        );
        let status = answer_to(&served, CONSUME, &[], bytes).await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_MESSAGE"));
    }
    let status = answer_to(&served, CONSUME, &[], message(&no_field)).await;
    assert_eq!(reason(&status), "INVALID_MESSAGE");
}

/// Nothing is ever unpacked, so that what is small can't become large.
#[tokio::test]
async fn what_is_compressed_is_refused_as_it_is() {
    let (_cluster, served, _client) = alone().await;
    let mut compressed = message(&[0x1f; 1_000]);
    compressed[0] = 1;
    for encoding in ["gzip", "deflate", "zstd", "br"] {
        let status = answer_to(&served, GET_LOCK, &[("grpc-encoding", encoding)], compressed.clone()).await;
        assert_eq!(status.code(), Code::Unimplemented, "{encoding}");
    }
}

#[tokio::test]
async fn a_message_that_announces_more_than_may_be_is_refused_before_it_comes() {
    let (_cluster, served, _client) = alone().await;
    let sender = by_hand(&served).await;
    for length in [(5_u32 << 20) + 1, u32::MAX] {
        let announced = [&[0][..], &length.to_be_bytes()].concat();
        let (answer, _body) = begin(&sender, GET_LOCK, &[], announced, false).await;
        let code = status_of(answer).await.code();
        assert!(matches!(code, Code::OutOfRange | Code::ResourceExhausted), "{length}: {code:?}");
    }
}

/// Mechanism: a place for each connection.
#[tokio::test]
async fn connections_past_the_limit_are_told_to_go_elsewhere() {
    let mut cluster = Cluster::new();
    cluster.grpc.connections_max = 3;
    let served = cluster.daemon().await;
    let mut first = served.client().await;
    let second = Raw::open(served.address).await;
    let third = Raw::connect(served.address).await;
    for _ in 0..200 {
        let mut refused = Raw::open(served.address).await;
        let frames = within(refused.until_closed()).await;
        let codes: Vec<_> = frames.iter().filter_map(Frame::goaway).collect();
        // Of very many at once some are closed without a word.
        assert!(codes.is_empty() || codes == [ENHANCE_YOUR_CALM], "{frames:?}");
    }
    let mut refused = Raw::open(served.address).await;
    let frames = within(refused.until_closed()).await;
    assert_eq!(frames.iter().filter_map(Frame::goaway).collect::<Vec<_>>(), [ENHANCE_YOUR_CALM]);
    // A client of gRPC takes it for what it is: nothing happened, go elsewhere.
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", served.address)).unwrap();
    let mut lazy = majorityd::proto::v1::lock_service_client::LockServiceClient::new(endpoint.connect_lazy());
    let status = within(lazy.get_lock(v1::GetLockRequest { name: "orders".into() })).await.unwrap_err();
    assert!(
        matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::Unknown),
        "{status:?}"
    );
    // Those that are there are served, and who leaves makes room.
    get(&mut first, "orders").await;
    drop((second, third));
    within(async {
        while lazy.get_lock(v1::GetLockRequest { name: "orders".into() }).await.is_err() {
            pause().await;
        }
    })
    .await;
}
