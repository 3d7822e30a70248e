//! A lock and a queue's worker with the client of this crate (feature `client`), to be copied and changed:
//!
//! `cargo run --features client --example client -- [ENDPOINT…]`, by default against `majorityd dev`
//!
//! `MAJORITYD_TLS_CA`, `MAJORITYD_TLS_CERT`, `MAJORITYD_TLS_KEY` and `MAJORITYD_TOKEN_FILE` name files, as for the commands.

use std::time::Duration;

use majorityd::client::{Client, ClientCertificate, ClientError, LockOptions, Refused, Security};
use majorityd::proto::v1;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut endpoints: Vec<String> = std::env::args().skip(1).collect();
    if endpoints.is_empty() {
        endpoints.push("http://127.0.0.1:7480".to_owned());
    }
    let client = Client::secured(endpoints, &security()?)?;
    Ok(run(&client).await?)
}

/// What the files say that the environment names.
fn security() -> Result<Security, std::io::Error> {
    let file = |variable: &str| std::env::var_os(variable).map(std::fs::read).transpose();
    let certificate = match (file("MAJORITYD_TLS_CERT")?, file("MAJORITYD_TLS_KEY")?) {
        (Some(chain), Some(key)) => Some(ClientCertificate { chain, key }),
        _ => None,
    };
    let token = file("MAJORITYD_TOKEN_FILE")?.map(|text| String::from_utf8_lossy(&text).trim().to_owned());
    Ok(Security { authorities: file("MAJORITYD_TLS_CA")?, certificate, token, ..Security::default() })
}

/// Both, one after the other.
pub async fn run(client: &Client) -> Result<(), ClientError> {
    nightly(client).await?;
    mail(client).await
}

/// Only one of all processes does this at a time.
async fn nightly(client: &Client) -> Result<(), ClientError> {
    let options = LockOptions { wait: Duration::from_secs(10), ..LockOptions::default() };
    let lock = client.lock("nightly", options).await?;
    println!("held under token {}", lock.fencing_token());
    tokio::select! {
        // The loss of the lock ends the work.
        loss = lock.lost() => println!("lost: {loss:?}"),
        () = report(lock.fencing_token()) => println!("done"),
    }
    println!("still held at the end: {}", lock.release().await);
    Ok(())
}

/// Stands for work that hands the token on to what it writes to.
async fn report(fencing_token: u64) {
    println!("writing under token {fencing_token}");
}

/// Each item is for one worker at a time.
async fn mail(client: &Client) -> Result<(), ClientError> {
    let items = ["ann", "", "bob"].map(|to| v1::NewItem {
        content: Some(v1::new_item::Content::Text(to.to_owned())),
        ..Default::default()
    });
    client.queues().put(v1::PutRequest { queue: "mail".to_owned(), items: items.into() }).await?;
    let (sent, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let send = |item: v1::ReservedItem| {
        let sent = sent.clone();
        async move {
            let to = String::from_utf8_lossy(&item.payload).into_owned();
            // Whoever counts may be gone.
            let _ = sent.send(());
            if to.is_empty() {
                return Err(Refused {
                    reason: "to nobody".to_owned(),
                    delay: Some(Duration::from_secs(3_600)),
                });
            }
            println!("sent to {to}, attempt {}", item.attempt);
            Ok(())
        }
    };
    // A real worker stops at a signal.
    let enough = async {
        for _ in 0..3 {
            seen.recv().await;
        }
    };
    client.work("mail", 4, send, enough).await?;
    println!("no more");
    Ok(())
}
