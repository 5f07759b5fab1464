//! Loads a model, from a seed if there is one, and then serves it to others, until Ctrl-C:
//! `cargo run -p rfork-loader --example seed -- http://planner:1223 /models/llama`

use std::error::Error;
use std::sync::Arc;

use rfork_loader::{Checkpoint, Config, Identity, Session, WeightMemory, Worker};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(planner), Some(model)) = (arguments.next(), arguments.next()) else {
        return Err("usage: seed PLANNER MODEL".into());
    };
    let config = Config::builder(&planner, &model, "example").build()?;
    let worker = Worker::of_tcp(&config, &Identity::default())?;
    let checkpoint = Arc::new(Checkpoint::open(model.as_ref())?);
    let memory = WeightMemory::allocate(&checkpoint.manifest().tensor_bytes())?;

    let mut session = Session::over_tcp(config, worker).await?;
    session.load(checkpoint.manifest(), memory, &checkpoint, &CancellationToken::new()).await?;
    println!("serving as {}", session.serve().await?.identity);
    tokio::signal::ctrl_c().await?;
    session.close().await;
    Ok(())
}
