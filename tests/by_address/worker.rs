//! A worker whose engine reads by address, for tests: `worker-by-address MODEL SETTINGS`, of which the second is JSON.

#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().json().flatten_event(true).with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().collect();
    let [_, model, settings] = &arguments[..] else {
        return tracing::error!("what is wanted is: worker-by-address MODEL SETTINGS");
    };
    rfork_tests::by_address::run(model, settings).await;
}
