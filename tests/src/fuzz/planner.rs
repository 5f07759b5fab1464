//! A planner in this process, for entry points that speak to one.

use rfork_planner::config::Settings;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use crate::{http, until};

pub(super) struct Planner {
    pub(super) address: String,
    _runtime: Runtime,
}

impl Planner {
    /// Starts one, which ends when it is dropped: before the directory of its files is.
    pub(super) fn start(settings: Settings) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        runtime.spawn(async move {
            rfork_planner::run(settings, listener, CancellationToken::new()).await.unwrap();
        });
        until("a planner that is ready", || {
            http::request(&address, "GET", "/readyz", &[])
                .is_ok_and(|answer| answer.status == 200)
                .then_some(())
        });
        Self { address, _runtime: runtime }
    }
}
