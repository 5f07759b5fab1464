//! What stands before planners in production: nginx or haproxy, with the configuration of `docs/load-balancer`.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::cluster::{as_user, other_user};
use crate::http::request;
use crate::process::Process;
use crate::{loopback, until};

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// nginx.
    Nginx,
    /// haproxy.
    Haproxy,
}

/// The planners that the documented configurations name.
const DOCUMENTED: [&str; 3] = ["10.0.0.1:1223", "10.0.0.2:1223", "10.0.0.3:1223"];

/// nginx's main file: the documented one is for its `http` block. All that it writes is beside it.
const NGINX_MAIN: &str = "
daemon off;
worker_processes 2;
pid nginx.pid;
error_log stderr warn;
events { worker_connections 512; }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include planner.conf;
}
";

/// A load balancer. Stopped when dropped.
#[derive(Debug)]
pub struct Balancer {
    process: Process,
    /// Where it listens, as `127.1.2.3:1223`.
    pub address: String,
    _directory: TempDir,
}

impl Balancer {
    /// Starts one before the planners at these addresses, and waits until it lets requests through.
    pub fn start(kind: Kind, planners: [&str; 3]) -> Self {
        let address = format!("{}:1223", loopback());
        let directory = TempDir::with_prefix("rfork-test-balancer-").unwrap();
        if let Some((user, group)) = other_user() {
            chown(directory.path(), Some(user), Some(group)).unwrap();
        }
        let place = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let mut command = match kind {
            Kind::Nginx => {
                let listen = ["listen 1223;", &format!("listen {address};")];
                place("planner.conf", &configuration("nginx.conf", listen, planners));
                let main = place("nginx.conf", NGINX_MAIN);
                let mut command = as_user(&program("nginx"));
                command.args(["-e", "stderr", "-p"]).arg(directory.path()).arg("-c").arg(main);
                command
            }
            Kind::Haproxy => {
                let listen = ["bind :1223", &format!("bind {address}")];
                let file = place("haproxy.cfg", &configuration("haproxy.cfg", listen, planners));
                let mut command = as_user(&program("haproxy"));
                command.arg("-db").arg("-f").arg(file);
                command
            }
        };
        let process = Process::spawn(&format!("{kind:?}"), &mut command);
        let balancer = Self { process, address, _directory: directory };
        balancer.until_ready();
        balancer
    }

    /// Waits until it leads to a planner that is ready.
    pub fn until_ready(&self) {
        let ready = || request(&self.address, "GET", "/readyz", &[]).is_ok_and(|answer| answer.status == 200);
        until("that the balancer leads to a planner", || ready().then_some(()));
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Balancer {
    /// By a signal, upon which nginx ends its workers.
    fn drop(&mut self) {
        self.process.try_terminate();
    }
}

/// The documented configuration, with the addresses that it is to have in their places.
fn configuration(file: &str, listen: [&str; 2], planners: [&str; 3]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/load-balancer").join(file);
    let mut text = std::fs::read_to_string(path).unwrap();
    for (documented, ours) in DOCUMENTED.into_iter().zip(planners).chain([listen.into()]) {
        assert_eq!(text.matches(documented).count(), 1, "'{documented}' in {file}");
        text = text.replace(documented, ours);
    }
    text
}

/// Where a server is: Debian keeps it out of most users' PATH.
fn program(name: &str) -> PathBuf {
    let debian = Path::new("/usr/sbin").join(name);
    if debian.exists() { debian } else { name.into() }
}
