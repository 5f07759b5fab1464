//! What takes root, or rights of it: network namespaces, `chroot`. A test that needs them is skipped without them.

use std::process::{Command, Stdio};

use crate::skip;

/// Whether `probe` succeeds here, such as `["unshare", "--net", "true"]` or `["chroot", "/", "true"]`. When it does not,
/// the test is to end, and this has said so.
pub fn may(probe: &[&str]) -> bool {
    let mut command = Command::new(probe[0]);
    command.args(&probe[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let may = command.status().is_ok_and(|status| status.success());
    if !may {
        skip(&format!("`{}` fails here; it takes root", probe.join(" ")));
    }
    may
}
