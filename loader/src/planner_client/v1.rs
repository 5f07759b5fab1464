//! API v1: headers there and back.

use std::time::Instant;

use http::{HeaderMap, StatusCode};
use reqwest::Method;
use rfork_protocol::SeedKey;
use rfork_protocol::v1::{self, AddSeed, GetSeed, Granted, LeaseRef, RemoveSeed};

use super::{Advert, Grant, PlannerClient, PlannerError, Renewal};

impl PlannerClient {
    pub(super) async fn v1_acquire(&self, key: &SeedKey) -> Result<Option<Grant>, PlannerError> {
        let asked_at = Instant::now();
        let request = GetSeed { key: key.clone(), labels: self.labels.clone() };
        let answer = self.v1_send(Method::GET, v1::GET_SEED, request.encode()).await?;
        match answer.status() {
            StatusCode::OK => {
                let Granted { identity, lease, lease_ttl: ttl } = Granted::decode(answer.headers())
                    .map_err(|error| self.malformed(v1::GET_SEED, &error))?;
                Ok(Some(Grant {
                    reference: LeaseRef { identity, lease },
                    ttl,
                    since: asked_at,
                    source: None,
                    pinned: None,
                }))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.refused(v1::GET_SEED, answer).await),
        }
    }

    pub(super) async fn v1_renew(&self, lease: &LeaseRef) -> Result<Renewal, PlannerError> {
        let lives = self.v1_done_or_unknown(v1::RENEW_SEED_LEASE, lease.encode()).await?;
        Ok(if lives { Renewal::Lives { ttl: None, next: None, advice: None } } else { Renewal::Gone })
    }

    pub(super) async fn v1_release(&self, lease: &LeaseRef) -> Result<(), PlannerError> {
        self.v1_done_or_unknown(v1::PUT_SEED, lease.encode()).await.map(drop)
    }

    pub(super) async fn v1_announce(&self, advert: &Advert) -> Result<(), PlannerError> {
        let (key, identity) = (advert.key.clone(), advert.identity.clone());
        let request = AddSeed { key, identity, refcnt: Some(0), labels: self.labels.clone() };
        let answer = self.v1_send(Method::POST, v1::ADD_SEED, request.encode()).await?;
        if answer.status() == StatusCode::OK { Ok(()) } else { Err(self.refused(v1::ADD_SEED, answer).await) }
    }

    pub(super) async fn v1_withdraw(&self, advert: &Advert) -> Result<(), PlannerError> {
        let (key, identity) = (advert.key.clone(), advert.identity.clone());
        let request = RemoveSeed { key, identity, labels: self.labels.clone() };
        let answer = self.v1_send(Method::POST, v1::REMOVE_SEED, request.encode()).await?;
        match answer.status() {
            StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::CONFLICT => Ok(()),
            _ => Err(self.refused(v1::REMOVE_SEED, answer).await),
        }
    }

    async fn v1_done_or_unknown(&self, path: &'static str, headers: HeaderMap) -> Result<bool, PlannerError> {
        let answer = self.v1_send(Method::POST, path, headers).await?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refused(path, answer).await),
        }
    }

    async fn v1_send(
        &self,
        method: Method,
        path: &'static str,
        headers: HeaderMap,
    ) -> Result<reqwest::Response, PlannerError> {
        let request = self.http.request(method, self.url(path)).headers(headers);
        self.send(request).await.map_err(|error| self.unreachable(path, error))
    }
}
