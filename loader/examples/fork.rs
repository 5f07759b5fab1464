//! Loads a model from a seed, which it waits for, without reading weights from storage; the model's files tell only which
//! tensors there are: `cargo run -p rfork-loader --example fork -- http://planner:1223 /models/llama`

use std::error::Error;
use std::time::Duration;

use rfork_loader::{Checkpoint, Config, Identity, NoFallback, Session, WeightMemory, Worker};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(planner), Some(model)) = (arguments.next(), arguments.next()) else {
        return Err("usage: fork PLANNER MODEL".into());
    };
    let config = Config::builder(&planner, &model, "example").seed_wait(Duration::from_secs(60)).build()?;
    let worker = Worker::of_tcp(&config, &Identity::default())?;
    let checkpoint = Checkpoint::open(model.as_ref())?;
    let memory = WeightMemory::allocate(&checkpoint.manifest().tensor_bytes())?;

    let mut session = Session::over_tcp(config, worker).await?;
    let cancel = CancellationToken::new();
    let report = session.load(checkpoint.manifest(), memory, &NoFallback, &cancel).await?;
    println!("loaded {} bytes, {} from {}", report.bytes, report.bytes_from_seeds(), report.main_source());
    session.close().await;
    Ok(())
}
