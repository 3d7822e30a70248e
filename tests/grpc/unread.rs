//! Answers that their clients do not read: how many bytes of them there may be, and what is told of more.

use bytes::Bytes;
use h2::client::SendRequest;
use majorityd::limits::{LEAVING_BYTES_PER_CONNECTION_MAX, VALUE_BYTES_MAX};
use majorityd::proto::v1;
use prost::Message;
use tokio::net::TcpStream;
use tonic::{Code, Status};

use crate::hostile::{begin, others_are_served, status_of};
use crate::kv::{look, set};
use crate::raw_http2::message;
use crate::stage::*;

const GET: &str = "/majority.v1.KvService/Get";
const SET: &str = "/majority.v1.KvService/Set";

/// A connection whose streams have no window: nothing of an answer's body is taken.
async fn without_window(served: &Served) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(served.address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    let (sender, connection) = builder.initial_window_size(0).handshake(stream).await.unwrap();
    start(async move { drop(connection.await) });
    sender
}

/// The streams whose answers wait to be read, and the refusals of the others.
async fn gets(sender: &SendRequest<Bytes>, count: usize) -> (Vec<h2::RecvStream>, Vec<Status>) {
    let request = message(&v1::GetRequest { key: "large".into() }.encode_to_vec());
    let (mut waiting, mut refused, mut begun) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        begun.push(begin(sender, GET, &[], request.clone(), true).await);
    }
    for (answer, _body) in begun {
        let answer = within(answer).await.unwrap();
        match Status::from_header_map(answer.headers()) {
            Some(status) => refused.push(status),
            None => waiting.push(answer.into_body()),
        }
    }
    (waiting, refused)
}

fn large(byte: u8) -> v1::SetRequest {
    let value = Some(v1::set_request::Content::Value(vec![byte; VALUE_BYTES_MAX].into()));
    v1::SetRequest { key: "large".into(), content: value, ..Default::default() }
}

/// Mechanism: what has not been read is counted.
#[tokio::test]
async fn answers_that_nobody_reads_are_bounded() {
    let (_cluster, served, _client) = alone().await;
    let mut other = served.kv().await;
    set(&mut other, large(1)).await;
    let sender = without_window(&served).await;
    // Each takes up twice its size.
    let most = LEAVING_BYTES_PER_CONNECTION_MAX / VALUE_BYTES_MAX / 2;
    let (waiting, refused) = gets(&sender, most + 40).await;
    assert_eq!((waiting.len(), refused.len()), (most - 1, 41), "with what is around it, one value less fits");
    for status in &refused {
        assert_eq!((status.code(), reason(status).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
        assert_eq!(metadata(status, "limit"), "leaving_bytes_per_connection_max");
    }
    // Others are served, with large values, too.
    others_are_served(&served).await;
    look(&mut other, "large").await.unwrap();

    // A call that did something says so, and small answers have room.
    let put = v1::SetRequest { return_previous: true, ..large(2) };
    let (answer, _body) = begin(&sender, SET, &[], message(&put.encode_to_vec()), true).await;
    let status = status_of(answer).await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unknown, "OUTCOME_UNKNOWN"));
    assert!(status.message().contains("the call was carried out"), "{status:?}");
    assert_eq!(look(&mut other, "large").await.unwrap().value[0], 2);
    let (answer, _body) = begin(&sender, SET, &[], message(&large(3).encode_to_vec()), true).await;
    assert!(Status::from_header_map(within(answer).await.unwrap().headers()).is_none());

    // Who takes back what it asked for makes room.
    drop(waiting);
    within(async {
        while gets(&sender, 1).await.0.is_empty() {
            pause().await;
        }
    })
    .await;
}
