//! NATS JetStream: a work queue in a file, and one pull consumer that all callers share.

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::Config as ConsumerConfig;
use async_nats::jetstream::stream::{Config as StreamConfig, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, Context};
use futures::StreamExt;
use majorityd::load::{Outcome, Work};

use crate::{Error, Load};

const SUBJECT: &str = "bench";

struct Caller {
    stream: Context,
    consumer: PullConsumer,
    payload: Vec<u8>,
}

impl Work for Caller {
    /// Puts a message and waits until the stream has it, fetches one, and acks it. Nothing is waited for after an ack.
    async fn once(&mut self) -> Result<(), String> {
        let put = self.stream.publish(SUBJECT, self.payload.clone().into()).await;
        put.map_err(|error| error.to_string())?.await.map_err(|error| error.to_string())?;
        let mut fetched =
            self.consumer.fetch().max_messages(1).messages().await.map_err(|error| error.to_string())?;
        let message =
            fetched.next().await.ok_or("nothing was fetched")?.map_err(|error| error.to_string())?;
        message.ack().await.map_err(|error| error.to_string())
    }
}

/// Makes the stream, anew, and puts the load on it.
pub async fn run(server: &str, load: &Load) -> Result<Outcome, Error> {
    let mut streams = Vec::new();
    for _ in 0..load.connections {
        streams.push(jetstream::new(async_nats::connect(server).await?));
    }
    // Of the round before; there is none in the first.
    let _ = streams[0].delete_stream(SUBJECT).await;
    let config = StreamConfig {
        name: SUBJECT.to_owned(),
        subjects: vec![SUBJECT.to_owned()],
        retention: RetentionPolicy::WorkQueue,
        storage: StorageType::File,
        ..Default::default()
    };
    streams[0].create_stream(config).await?;
    let config = ConsumerConfig { durable_name: Some(SUBJECT.to_owned()), ..Default::default() };
    let mut callers = Vec::new();
    for number in 0..load.callers {
        let stream = streams[number as usize % streams.len()].clone();
        let consumer =
            stream.get_stream(SUBJECT).await?.get_or_create_consumer(SUBJECT, config.clone()).await?;
        callers.push(Caller { stream, consumer, payload: vec![b'x'; load.payload] });
    }
    Ok(load.put_on(callers).await)
}
