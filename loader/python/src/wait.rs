//! Waiting on the calling thread for what the runtime does: without the GIL, but with ears for signals and callbacks.

use std::error::Error;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use async_trait::async_trait;
use pyo3::prelude::*;
use rfork_loader::fallback::Reload;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::errors::RForkError;

/// How often the waiting thread looks for signals, and tells progress.
const TURN: Duration = Duration::from_millis(100);
/// The same while YuanRong's library may hold the GIL: a thread that asks for it meanwhile is woken every few
/// milliseconds to ask again, which slows the read down.
const RARE_TURN: Duration = Duration::from_secs(1);

/// What the runtime tells the thread that waits.
pub(crate) enum Message<T> {
    /// The caller's own loader is to load, and its end is to be told.
    Reload {
        /// Whether a seed may have written to the tensors.
        touched: bool,
        /// Where its end is told.
        ended: oneshot::Sender<Result<(), String>>,
    },
    /// It is over.
    Done(T),
}

/// The caller's own loader, as the loader sees it: the waiting thread calls it.
pub(crate) struct CallerLoads<T>(pub(crate) Sender<Message<T>>);

#[async_trait]
impl<T: Send + 'static> Reload for CallerLoads<T> {
    async fn reload(&self, touched: bool) -> Result<(), Box<dyn Error + Send + Sync>> {
        let (ended, end) = oneshot::channel();
        self.0.send(Message::Reload { touched, ended }).map_err(|_| "nobody waits for the load")?;
        // The thread that waits is in that loader, and tells its end before it goes on to anything else.
        end.await.map_err(|_| "nobody waits for the load")?.map_err(Into::into)
    }
}

/// What the calling thread does meanwhile.
#[derive(Default)]
pub(crate) struct Callbacks<'a, 'py> {
    /// The caller's own loader.
    pub(crate) reload: Option<&'a Bound<'py, PyAny>>,
    /// Called every turn.
    pub(crate) progress: Option<&'a mut dyn FnMut() -> PyResult<()>>,
    /// Ends what is waited for, when a signal handler or a callback raised.
    pub(crate) cancel: Option<&'a CancellationToken>,
    /// Whether what is waited for may hold the GIL for long.
    pub(crate) holds_gil: bool,
}

/// Waits for the end. An exception of a callback or a signal handler is raised only after it, so that nobody touches
/// the caller's memory any more when the caller goes on.
///
/// # Errors
/// The exception of a callback or a signal handler, beside what was waited for.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    messages: &mut Receiver<Message<T>>,
    mut callbacks: Callbacks<'_, '_>,
) -> PyResult<(T, Option<PyErr>)> {
    // Who wants to hear of progress is told.
    let rare = callbacks.holds_gil && callbacks.progress.is_none();
    let turn = if rare { RARE_TURN } else { TURN };
    let mut raised = None;
    let mut note = |result: PyResult<()>| {
        if let Err(error) = result
            && raised.is_none()
        {
            raised = Some(error);
            if let Some(cancel) = callbacks.cancel {
                cancel.cancel();
            }
        }
    };
    loop {
        // Moved, so that the other thread needs no shared access to it.
        let listening = &mut *messages;
        match py.detach(move || listening.recv_timeout(turn)) {
            Ok(Message::Done(result)) => return Ok((result, raised)),
            Ok(Message::Reload { touched, ended }) => {
                let result = match callbacks.reload {
                    Some(reload) => reload.call1((touched,)).map(drop),
                    None => Ok(()),
                };
                let told = result.as_ref().map_err(ToString::to_string).copied();
                note(result);
                // Who asked for it may have been cancelled meanwhile.
                let _ = ended.send(told);
            }
            Err(RecvTimeoutError::Timeout) => {
                note(py.check_signals());
                if let Some(progress) = &mut callbacks.progress {
                    note(progress());
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(RForkError::new_err(
                    "rfork's own thread failed; its message is on standard error",
                ));
            }
        }
    }
}
