//! `majorityd queue put`.

use std::io::{self, BufRead, BufReader, Read as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tonic::Code;

use super::{End, ask, status_of};
use crate::cli::client::{Daemons, Failed, QueueClient, exit_code, explain, to_proto};
use crate::cli::{Output, parse_pair, print_json, print_line, printable, read_all};
use crate::limits;
use crate::proto::v1;
use crate::proto::v1::new_item::Content;
use crate::proto::v1::put_response::result::Outcome;
use crate::runtime::{Runtime, system};

/// How often an item is put whose outcome is not known, or that no quorum took.
const ATTEMPTS: usize = 3;
/// Pause before another attempt.
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes of lines that are put in one call; the rest of what a call may have is for ids and attributes.
const BATCH_BYTES: usize = 2 << 20;

#[derive(Debug, Args)]
pub(super) struct Put {
    /// The queue
    queue: String,
    /// The payload; - for what comes on the standard input, to its last byte
    #[arg(required_unless_present_any = ["file", "lines"], conflicts_with_all = ["file", "lines"])]
    payload: Option<String>,
    /// The payload is what is in this file
    #[arg(long, value_name = "FILE", conflicts_with = "lines")]
    file: Option<PathBuf>,
    /// Put each line of the standard input as an item, an empty one too, without its line break
    #[arg(long)]
    lines: bool,
    /// The item's id: nothing is put if the queue has it or had it a little ago (default: a unique one)
    #[arg(long, conflicts_with = "lines")]
    id: Option<String>,
    /// Lower comes first
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    priority: i32,
    /// For how long nobody gets it
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    delay: Option<Duration>,
    /// Goes with the item to whoever gets it; repeatable
    #[arg(long = "attribute", value_name = "KEY=VALUE", value_parser = parse_pair)]
    attributes: Vec<(String, String)>,
}

impl Put {
    pub(super) async fn run(self, daemons: &mut Daemons, output: Output) -> Result<End, Failed> {
        if self.lines {
            return self.put_lines(daemons, output, BufReader::with_capacity(1 << 20, io::stdin())).await;
        }
        let given = self.id.is_some();
        let item = self.item(self.payload()?);
        let results = put(daemons, &self.queue, vec![item]).await?;
        let Some(Ok(put)) = results.first() else {
            return Ok(End::Code(say_failures(daemons, &results, |_| String::new())));
        };
        let duplicate = put.duplicate && given;
        match output {
            Output::Json => print_json(&json!({ "id": put.id, "duplicate": duplicate })),
            Output::Text => {
                print_line(&printable(&put.id));
                if duplicate {
                    eprintln!("majorityd: {} is a duplicate: nothing was put", printable(&put.id));
                }
            }
        }
        Ok(End::Done)
    }

    fn payload(&self) -> Result<Content, Failed> {
        let read = match (&self.file, self.payload.as_deref()) {
            (Some(file), _) => {
                std::fs::File::open(file).and_then(read_all).map_err(|error| (error, Some(file)))
            }
            (None, Some("-")) => read_all(io::stdin().lock()).map_err(|error| (error, None)),
            (None, text) => return Ok(Content::Text(text.unwrap_or_default().to_owned())),
        };
        read.map(|bytes| Content::Payload(bytes.into())).map_err(|(error, file)| {
            let from = file.map_or("the standard input".to_owned(), |file| format!("{file:?}"));
            Failed::Usage(format!("{from} can't be read: {error}"))
        })
    }

    fn item(&self, content: Content) -> v1::NewItem {
        v1::NewItem {
            id: Some(self.id.clone().unwrap_or_else(|| unique_id(&system::runtime()))),
            content: Some(content),
            priority: self.priority,
            delay: self.delay.map(to_proto),
            attributes: self.attributes.iter().cloned().collect(),
        }
    }

    /// In batches of what there is to read at a time, so that lines that come slowly don't wait for others.
    async fn put_lines(
        &self,
        daemons: &mut Daemons,
        output: Output,
        mut input: impl Lines,
    ) -> Result<End, Failed> {
        let mut code = None;
        let mut before = 0;
        loop {
            let (batch, ending) = next_batch(&mut input, before);
            let count = batch.len();
            let items = batch.into_iter().map(|line| self.item(Content::Payload(line.into()))).collect();
            let results = match count {
                0 => Vec::new(),
                _ => put(daemons, &self.queue, items).await.inspect_err(|_| say_before(before))?,
            };
            for put in results.iter().flatten() {
                print_line(&match output {
                    Output::Json => json!({ "id": put.id, "duplicate": false }).to_string(),
                    Output::Text => printable(&put.id),
                });
            }
            if results.iter().any(Result::is_err) {
                code = Some(say_failures(daemons, &results, |at| format!("line {}: ", before + at + 1)));
            }
            before += count;
            match ending {
                Ending::More => {}
                Ending::Last => return Ok(code.map_or(End::Done, End::Code)),
                Ending::Bad(what) => {
                    say_before(before);
                    return Err(Failed::Usage(what));
                }
            }
        }
    }
}

/// What lines are read from: it knows how much it has that need not be waited for.
trait Lines: BufRead {
    fn has_a_line(&self) -> bool;
}

impl<R: io::Read> Lines for BufReader<R> {
    fn has_a_line(&self) -> bool {
        self.buffer().contains(&b'\n')
    }
}

/// What comes after a batch.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    More,
    Last,
    Bad(String),
}

/// At least one line, and as many more as are there and fit. `before` is how many lines were read so far.
fn next_batch(input: &mut impl Lines, before: usize) -> (Vec<Vec<u8>>, Ending) {
    let mut batch: Vec<Vec<u8>> = Vec::new();
    let mut bytes = 0;
    loop {
        let mut line = Vec::new();
        let most = limits::VALUE_BYTES_CEILING as u64 + 2;
        if let Err(error) = input.by_ref().take(most).read_until(b'\n', &mut line) {
            return (batch, Ending::Bad(format!("the standard input can't be read: {error}")));
        }
        if line.is_empty() {
            return (batch, Ending::Last);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() as u64 == most {
            let number = before + batch.len() + 1;
            return (batch, Ending::Bad(format!("line {number} is longer than any item may be")));
        }
        bytes += line.len();
        batch.push(line);
        if bytes >= BATCH_BYTES || batch.len() >= limits::BATCH_ITEMS_MAX || !input.has_a_line() {
            return (batch, Ending::More);
        }
    }
}

fn say_before(count: usize) {
    eprintln!("majorityd: the {count} lines before were dealt with");
}

/// Says which were not put. The exit code of the first one.
fn say_failures(
    daemons: &Daemons,
    results: &[Result<v1::put_response::Put, tonic::Status>],
    which: impl Fn(usize) -> String,
) -> u8 {
    let mut code = None;
    for (at, result) in results.iter().enumerate() {
        if let Err(status) = result {
            eprintln!("majorityd: {}{}", which(at), explain(status, daemons.address()));
            code.get_or_insert(exit_code(status));
        }
    }
    code.unwrap_or(crate::cli::EXIT_FAILURE)
}

/// Puts items, all of which have an id: so what is not known to have been put is put again.
async fn put(
    daemons: &mut Daemons,
    queue: &str,
    items: Vec<v1::NewItem>,
) -> Result<Vec<Result<v1::put_response::Put, tonic::Status>>, Failed> {
    let runtime = system::runtime();
    let mut results: Vec<Option<Result<_, tonic::Status>>> = vec![None; items.len()];
    for attempt in 1..=ATTEMPTS {
        let again = |result: &Option<Result<_, tonic::Status>>| match result {
            None => true,
            Some(Err(status)) => status.code() == Code::Unavailable,
            Some(Ok(_)) => false,
        };
        let left: Vec<usize> = (0..items.len()).filter(|&at| again(&results[at])).collect();
        if left.is_empty() {
            break;
        }
        if attempt > 1 {
            daemons.advance();
            runtime.clock.sleep_until(runtime.clock.now() + PAUSE).await;
        }
        let message = v1::PutRequest {
            queue: queue.to_owned(),
            items: left.iter().map(|&at| items[at].clone()).collect(),
        };
        let call = |mut client: QueueClient, message| async move { client.put(message).await };
        let answer = match ask(daemons, message, call).await {
            Ok(answer) => answer,
            Err(status) if status.code() == Code::Unavailable && attempt < ATTEMPTS => continue,
            Err(status) if results.iter().all(Option::is_none) => return Err(status.into()),
            Err(status) => {
                left.into_iter().for_each(|at| results[at] = Some(Err(status.clone())));
                break;
            }
        };
        for (at, result) in left.into_iter().zip(answer.results) {
            results[at] = Some(match result.outcome {
                Some(Outcome::Put(put)) => Ok(put),
                Some(Outcome::Error(error)) => Err(status_of(&error)),
                None => Err(no_result()),
            });
        }
    }
    Ok(results.into_iter().map(|result| result.unwrap_or_else(|| Err(no_result()))).collect())
}

fn no_result() -> tonic::Status {
    tonic::Status::internal("the answer has no result for the item")
}

/// An id that nobody else draws.
fn unique_id(runtime: &Runtime) -> String {
    format!("{:032x}", runtime.entropy.next_u128())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(text: &[u8], capacity: usize) -> Vec<Vec<Vec<u8>>> {
        let mut input = BufReader::with_capacity(capacity, text);
        let mut batches = Vec::new();
        loop {
            let (batch, ending) = next_batch(&mut input, 0);
            batches.push(batch);
            match ending {
                Ending::More => {}
                Ending::Last => return batches,
                Ending::Bad(what) => panic!("{what}"),
            }
        }
    }

    #[test]
    fn lines_come_in_batches_of_what_is_there() {
        let whole = |capacity| batches(b"a\n\nb\xff\r\nlast", capacity).concat();
        let lines: [&[u8]; 4] = [b"a", b"", b"b\xff\r", b"last"];
        for capacity in [1, 2, 3, 100] {
            assert_eq!(whole(capacity), lines, "{capacity}");
        }
        assert_eq!(batches(b"a\nb\n", 100), [vec![b"a".to_vec(), b"b".to_vec()], vec![]]);
        assert_eq!(batches(b"a\nb\n", 2)[0], [b"a"]);
        assert_eq!(
            batches(&[b'\n'; 2_500], 4_000).iter().map(Vec::len).collect::<Vec<_>>(),
            [1_000, 1_000, 500, 0]
        );
    }

    #[test]
    fn a_line_without_an_end_is_not_read_forever() {
        let mut input = BufReader::new(io::repeat(b'x'));
        let (batch, ending) = next_batch(&mut input, 41);
        assert!(batch.is_empty());
        assert_eq!(ending, Ending::Bad("line 42 is longer than any item may be".to_owned()));
    }
}
