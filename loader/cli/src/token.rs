//! The token that commands show a planner which asks who asks.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use reqwest::header::AUTHORIZATION;
use reqwest::{RequestBuilder, Url};
use rfork_loader::token::{TokenFile, has_credential, is_private};
use rfork_protocol::settings::Takes;

/// Where the token is.
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// A file with the token that the planner is shown, if it asks who asks [env: `RFORK_TOKEN_FILE`]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Show it to a planner on another machine without TLS, too, where others may read it on its way
    /// [env: `RFORK_TOKEN_OVER_HTTP`]
    #[arg(long)]
    token_over_http: bool,
}

impl TokenArgs {
    /// The file, if there is one.
    ///
    /// # Errors
    /// When the token could be read on its way to `planner`.
    pub(crate) fn file(&self, planner: &Url) -> Result<Option<TokenFile>> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
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
        Ok(match self.file(planner)? {
            Some(token) => request.header(AUTHORIZATION, token.header().await?),
            None => request,
        })
    }
}
