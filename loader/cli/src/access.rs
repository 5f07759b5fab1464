//! How commands come to a planner: whom they believe that it is, and what they show one which asks who asks.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use reqwest::header::AUTHORIZATION;
use reqwest::{Client, RequestBuilder, Url};
use rfork_loader::http;
use rfork_loader::planner_ca::PlannerCa;
use rfork_loader::token::{TokenFile, has_credential, is_private};
use rfork_protocol::settings::Takes;

/// Where the CAs and the token are.
#[derive(Debug, Args)]
pub(crate) struct AccessArgs {
    /// A PEM file with the CAs that vouch for a planner at https://; nobody else does then
    /// [env: `RFORK_PLANNER_CA_FILE`]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// A file with the token that the planner is shown, if it asks who asks [env: `RFORK_TOKEN_FILE`]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Show it to a planner on another machine without TLS, too, where others may read it on its way
    /// [env: `RFORK_TOKEN_OVER_HTTP`]
    #[arg(long)]
    token_over_http: bool,
}

impl AccessArgs {
    /// The CAs, if a file names them and TLS is spoken.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub(crate) fn ca(&self, planner: &Url) -> Result<Option<PlannerCa>> {
        // The variable may be there for others.
        let is_for_nobody = self.ca_file.is_some() && planner.scheme() != "https";
        ensure!(!is_for_nobody, "--ca-file is for a planner at https://");
        let path = self.ca_file.clone().or_else(|| variable("RFORK_PLANNER_CA_FILE").map(PathBuf::from));
        Ok(path.filter(|_| planner.scheme() == "https").map(PlannerCa::read).transpose()?)
    }

    /// A client for requests that end within `deadline`.
    ///
    /// # Errors
    /// The same.
    pub(crate) fn client(&self, planner: &Url, deadline: Duration) -> Result<Client> {
        Ok(match self.ca(planner)? {
            Some(ca) => http::trusting(deadline, &ca)?,
            None => http::client(deadline, planner.scheme() == "https")?,
        })
    }

    /// The file, if there is one.
    ///
    /// # Errors
    /// When the token could be read on its way to `planner`.
    pub(crate) fn token(&self, planner: &Url) -> Result<Option<TokenFile>> {
        let path = self.token_file.clone().or_else(|| variable("RFORK_TOKEN_FILE").map(PathBuf::from));
        let said = variable("RFORK_TOKEN_OVER_HTTP").and_then(|text| Takes::Switch.read_text(text.to_str()?));
        let over_http = self.token_over_http || said.as_deref() == Some("true");
        ensure!(
            path.is_none() || !has_credential(planner),
            "a request shows one credential: give --token-file, or a user and a password in the URL"
        );
        ensure!(
            path.is_none() || over_http || is_private(planner),
            "the token would be sent without TLS, where others may read it on its way: give an https:// URL, or \
             --token-over-http if nobody else is on that network"
        );
        Ok(path.map(TokenFile::new))
    }

    /// The request with the token.
    ///
    /// # Errors
    /// The same; or when the file cannot be used.
    pub(crate) async fn show(&self, planner: &Url, request: RequestBuilder) -> Result<RequestBuilder> {
        Ok(match self.token(planner)? {
            Some(token) => request.header(AUTHORIZATION, token.header().await?),
            None => request,
        })
    }
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}
