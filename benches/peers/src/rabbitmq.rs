//! RabbitMQ: a quorum queue, with confirmed publishing and a consumer for each caller.

use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use majorityd::load::{Outcome, Work};

use crate::{Error, Load};

/// Of BasicProperties: kept on the disk.
const PERSISTENT: u8 = 2;

struct Caller {
    channel: Channel,
    consumer: Consumer,
    queue: String,
    payload: Vec<u8>,
}

impl Work for Caller {
    /// Puts a message and waits until the queue has it, takes the next one, and acks it. The protocol has no answer to an ack.
    async fn once(&mut self) -> Result<(), String> {
        let told = |error: lapin::Error| error.to_string();
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
        let queue = self.queue.as_str().into();
        let sent = self
            .channel
            .basic_publish("".into(), queue, options, &self.payload, properties)
            .await
            .map_err(told)?;
        let confirmed = sent.await.map_err(told)?;
        if !confirmed.is_ack() {
            return Err("the message was not taken".to_owned());
        }
        let delivery = self.consumer.next().await.ok_or("the consumer ended")?.map_err(told)?;
        delivery.ack(BasicAckOptions::default()).await.map_err(told)?;
        Ok(())
    }
}

/// Declares the queues and puts the load on them. Each caller has a channel, which is what a thread has by the client's rules, and
/// one message at a time.
pub async fn run(server: &str, load: &Load) -> Result<Outcome, Error> {
    let mut connections = Vec::new();
    for _ in 0..load.connections {
        connections.push(Connection::connect(server, ConnectionProperties::default()).await?);
    }
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    let mut callers = Vec::new();
    for number in 0..load.callers {
        let channel = connections[number as usize % connections.len()].create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        channel.basic_qos(1, BasicQosOptions::default()).await?;
        let queue = load.name(number);
        channel.queue_declare(queue.as_str().into(), durable, arguments.clone()).await?;
        let tag = format!("caller-{number}");
        let consumed = channel.basic_consume(
            queue.as_str().into(),
            tag.as_str().into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        callers.push(Caller { consumer: consumed.await?, channel, queue, payload: vec![b'x'; load.payload] });
    }
    Ok(load.put_on(callers).await)
}
