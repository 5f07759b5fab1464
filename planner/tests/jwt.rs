//! JWTs of an issuer that a planner believes: those that are good, and all that are not; keys that change, and an issuer
//! that is away.

// Clippy knows tests by their attribute, which helpers of theirs lack.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rfork_planner::config::{DatabaseUrl, Settings};
use rfork_planner::identity::{Mode, TokenFile};
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::{Value, json};
use support::{Answer, PATIENCE, Planner};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "rfork-planner";
const SUBJECT: &str = "system:serviceaccount:team-a:ranks";
const METRICS: &str = "metrics-0123456789abcdef";

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A key that signs, under a name.
enum Key {
    Ec(String, Box<EcdsaKeyPair>),
    Ed(String, Ed25519KeyPair),
    Rsa(String, Box<RsaKeyPair>),
}

impl Key {
    fn ec(id: &str) -> Self {
        let (random, form) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let key = EcdsaKeyPair::generate_pkcs8(form, &random).unwrap();
        Self::Ec(id.into(), Box::new(EcdsaKeyPair::from_pkcs8(form, key.as_ref(), &random).unwrap()))
    }

    fn ed(id: &str) -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::Ed(id.into(), Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap())
    }

    /// Always the same: making one takes too long.
    fn rsa(id: &str) -> Self {
        let text: String =
            include_str!("issuer_rsa.pem").lines().filter(|line| !line.starts_with("--")).collect();
        Self::Rsa(id.into(), Box::new(RsaKeyPair::from_pkcs8(&STANDARD.decode(text).unwrap()).unwrap()))
    }

    fn id(&self) -> &str {
        match self {
            Self::Ec(id, _) | Self::Ed(id, _) | Self::Rsa(id, _) => id,
        }
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Ec(..) => "ES256",
            Self::Ed(..) => "EdDSA",
            Self::Rsa(..) => "RS256",
        }
    }

    fn public(&self) -> Value {
        match self {
            Self::Ec(id, key) => {
                let point = key.public_key().as_ref();
                let (x, y) = (base64(&point[1..33]), base64(&point[33..]));
                json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": id, "x": x, "y": y})
            }
            Self::Ed(id, key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "alg": "EdDSA", "x": base64(key.public_key())})
            }
            Self::Rsa(id, key) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(key.public());
                let (n, e) = (base64(public.n), base64(public.e));
                json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": id, "n": n, "e": e})
            }
        }
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
        let random = SystemRandom::new();
        let signature = match self {
            Self::Ec(_, key) => key.sign(&random, message.as_bytes()).unwrap().as_ref().to_vec(),
            Self::Ed(_, key) => key.sign(message.as_bytes()).as_ref().to_vec(),
            Self::Rsa(_, key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).unwrap();
                signature
            }
        };
        format!("{message}.{}", base64(signature))
    }

    /// A JWT with these claims.
    fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": self.algorithm(), "kid": self.id(), "typ": "JWT"}), claims)
    }
}

fn now_sec() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// Claims that are good, with some that are others; null leaves one out.
fn claims(others: &Value) -> Value {
    let now = now_sec();
    let mut claims = json!({
        "iss": ISSUER, "aud": [AUDIENCE], "sub": SUBJECT, "iat": now, "nbf": now, "exp": now + 3_600,
    });
    for (name, value) in others.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

/// What it answers, and how often it was asked.
type Shared = (Arc<Mutex<Option<String>>>, Arc<AtomicUsize>);

/// An issuer that tells its keys.
struct Issuer {
    url: String,
    /// What it answers; nothing is 500.
    tells: Arc<Mutex<Option<String>>>,
    asked: Arc<AtomicUsize>,
    _serving: AbortOnDropHandle<()>,
}

impl Issuer {
    async fn start(keys: &[&Key]) -> Self {
        let tells = Arc::new(Mutex::new(Some(Self::document(keys))));
        let asked = Arc::new(AtomicUsize::new(0));
        let answer = async |State((tells, asked)): State<Shared>, headers: HeaderMap| {
            asked.fetch_add(1, Ordering::SeqCst);
            // Whoever asks shows what its file holds.
            let shows = headers.get("authorization").is_some_and(|value| value == "Bearer planner-s-own");
            let told = tells.lock().unwrap().clone().filter(|_| shows);
            told.ok_or(StatusCode::INTERNAL_SERVER_ERROR)
        };
        let router = Router::new().route("/keys", get(answer)).with_state((tells.clone(), asked.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let serving = async move { axum::serve(listener, router).await.unwrap() };
        Self { url, tells, asked, _serving: AbortOnDropHandle::new(tokio::spawn(serving)) }
    }

    fn document(keys: &[&Key]) -> String {
        let symmetric = json!({"kty": "oct", "kid": "symmetric", "k": base64("secret-secret-secret-secret")});
        let keys: Vec<Value> =
            keys.iter().map(|key| key.public()).chain([symmetric, json!({"kty": "?"})]).collect();
        json!({"keys": keys}).to_string()
    }

    fn tells(&self, keys: Option<&[&Key]>) {
        *self.tells.lock().unwrap() = keys.map(Self::document);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// A file that believes an issuer whose keys are there: `jwks_url = …` or `jwks_file = …`.
fn write(home: &Path, keys: &str) -> PathBuf {
    let path = home.join("tokens.toml");
    let text = format!(
        "[[issuer]]\nissuer = '{ISSUER}'\naudience = '{AUDIENCE}'\n{keys}\n\
         [[principal]]\nname = 'team-a'\nroles = ['worker']\nkeys = ['a/*']\n\
         jwts = [{{ issuer = '{ISSUER}', subject = 'system:serviceaccount:team-a:*' }}]\n\
         [[principal]]\nname = 'on-call'\nroles = ['operator']\n\
         jwts = [{{ issuer = '{ISSUER}', claims = {{ groups = 'on-call' }} }}]\n\
         [[principal]]\nname = 'metrics'\nroles = ['metrics']\ntokens = ['{METRICS}']\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}

async fn start(home: &Path, issuer: &Issuer) -> Planner {
    let token = home.join("planner.token");
    std::fs::write(&token, "planner-s-own\n").unwrap();
    let keys = format!("jwks_url = '{}'\ntoken_file = '{}'", issuer.url, token.display());
    start_with(home, &keys).await
}

async fn start_with(home: &Path, keys: &str) -> Planner {
    let file = TokenFile::read(&write(home, keys)).unwrap();
    let change =
        |settings: &mut Settings| (settings.token_file, settings.auth_mode) = (Some(file), Mode::Enforce);
    Planner::start_on(DatabaseUrl::Sqlite(home.join("p.db")), change).await
}

async fn get_seed(planner: &Planner, token: &str, key: &str) -> Answer {
    let authorization = format!("Bearer {token}");
    planner.ask("GET", "/get_seed", &[("Authorization", &authorization), ("SEED_KEY", key)]).await
}

async fn metrics(planner: &Planner) -> String {
    let authorization = format!("Bearer {METRICS}");
    planner.ask("GET", "/metrics", &[("Authorization", &authorization)]).await.body
}

#[tokio::test]
async fn a_jwt_is_its_principal_s() {
    let home = tempfile::tempdir().unwrap();
    let keys = [Key::ec("ec"), Key::rsa("rsa"), Key::ed("ed")];
    let issuer = Issuer::start(&keys.each_ref()).await;
    let planner = start(home.path(), &issuer).await;
    for key in &keys {
        let token = key.token(&claims(&json!({})));
        get_seed(&planner, &token, "a/m").await.is(404, "no available seed");
        let answer = get_seed(&planner, &token, "b/m").await;
        assert_eq!(answer.status, 403, "{answer:?}");
        // As unmodified workers send it.
        let basic = format!("Basic {}", STANDARD.encode(format!("rfork:{token}")));
        let headers = [("Authorization", &*basic), ("SEED_KEY", "a/m")];
        planner.ask("GET", "/get_seed", &headers).await.is(404, "no available seed");
    }
    // What clocks differ by is borne, and one audience may stand alone.
    let now = now_sec();
    for others in
        [json!({"nbf": now + 10}), json!({"exp": now - 10}), json!({"aud": AUDIENCE}), json!({"nbf": null})]
    {
        get_seed(&planner, &keys[0].token(&claims(&others)), "a/m").await.is(404, "no available seed");
    }
    let operator = keys[0].token(&claims(&json!({"sub": "somebody", "groups": ["all", "on-call"]})));
    let authorization = format!("Bearer {operator}");
    assert_eq!(planner.ask("GET", "/v2/seeds", &[("Authorization", &authorization)]).await.status, 200);
    assert_eq!(get_seed(&planner, &operator, "a/m").await.status, 403);
    assert_eq!(issuer.asked(), 1, "keys that are known are not asked for");
    planner.stop().await;
}

#[tokio::test]
async fn what_is_not_good_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let (known, other, rsa) = (Key::ec("ec"), Key::ec("ec"), Key::rsa("rsa"));
    let issuer = Issuer::start(&[&known, &rsa]).await;
    let planner = start(home.path(), &issuer).await;
    let (now, good) = (now_sec(), claims(&json!({})));
    let header = |algorithm: &str, kid: &str| json!({"alg": algorithm, "kid": kid});
    let unsigned = |header: &Value| format!("{}.{}", base64(header.to_string()), base64(good.to_string()));
    let by_secret = |secret: &[u8], kid: &str| {
        let message = unsigned(&header("HS256", kid));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
        format!("{message}.{}", base64(ring::hmac::sign(&key, message.as_bytes())))
    };
    let token = known.token(&good);
    let (message, signature) = token.rsplit_once('.').unwrap();
    let of_another_message = known.token(&claims(&json!({"sub": "another"})));
    let public = rsa.public();
    let expired = known.token(&claims(&json!({"exp": now - 3_600})));
    let stranger = known.token(&claims(&json!({"sub": "system:serviceaccount:team-b:ranks"})));
    for (what, token, status) in [
        ("ended", expired.clone(), 401),
        ("not good yet", known.token(&claims(&json!({"nbf": now + 3_600}))), 401),
        ("for somebody else", known.token(&claims(&json!({"aud": "another"}))), 401),
        ("for nobody", known.token(&claims(&json!({"aud": null}))), 401),
        ("for no list", known.token(&claims(&json!({"aud": []}))), 401),
        ("of another issuer", known.token(&claims(&json!({"iss": "https://other.example"}))), 401),
        ("of two issuers", known.token(&claims(&json!({"iss": [ISSUER, "https://other.example"]}))), 401),
        ("of no issuer", known.token(&claims(&json!({"iss": null}))), 401),
        ("without an end", known.token(&claims(&json!({"exp": null}))), 401),
        ("with an end that is no number", known.token(&claims(&json!({"exp": "never"}))), 401),
        ("with a beginning that is no number", known.token(&claims(&json!({"nbf": "never"}))), 401),
        ("of nobody", known.token(&claims(&json!({"sub": null}))), 401),
        ("with a number for a subject", known.token(&claims(&json!({"sub": 7}))), 401),
        ("by another key of that name", other.token(&good), 401),
        ("not signed", format!("{}.", unsigned(&header("none", "ec"))), 401),
        ("not signed, in capitals", format!("{}.", unsigned(&header("None", "ec"))), 401),
        ("without a signature", format!("{message}."), 401),
        ("signed with the public key", by_secret(public["n"].as_str().unwrap().as_bytes(), "rsa"), 401),
        ("signed with the document", by_secret(Issuer::document(&[&known, &rsa]).as_bytes(), "ec"), 401),
        ("signed with the symmetric key", by_secret(b"secret-secret-secret-secret", "symmetric"), 401),
        ("of another algorithm", known.sign(&header("ES384", "ec"), &good), 401),
        ("of another kind of key", known.sign(&header("RS256", "ec"), &good), 401),
        ("of another key's name", known.sign(&header("ES256", "rsa"), &good), 401),
        ("without a name among several keys", known.sign(&json!({"alg": "ES256"}), &good), 401),
        (
            "with a part that must be understood",
            known.sign(&json!({"alg": "ES256", "kid": "ec", "crit": ["x"], "x": 1}), &good),
            401,
        ),
        (
            "with another's signature",
            format!("{message}.{}", of_another_message.rsplit_once('.').unwrap().1),
            401,
        ),
        ("truncated", token[..token.len() - 4].to_owned(), 401),
        ("truncated more", message.to_owned(), 401),
        ("with something after it", format!("{token}.{signature}"), 401),
        ("padded", format!("{token}=="), 401),
        ("no JSON", format!("eyJ.{}.x", base64("x")), 401),
        ("oversized", known.token(&claims(&json!({"more": "x".repeat(9_000)}))), 401),
        ("another team's", stranger.clone(), 403),
        ("good", token.clone(), 404),
    ] {
        let answer = get_seed(&planner, &token, "a/m").await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        assert!(!answer.body.contains("eyJ"), "{what}: {answer:?}");
    }
    // What is signed by its issuer is told why it is refused.
    let told = get_seed(&planner, &expired, "a/m").await;
    assert!(told.body.starts_with("unauthenticated: this token has ended"), "{told:?}");
    let told = get_seed(&planner, &stranger, "a/m").await;
    assert!(
        told.body.starts_with("forbidden: this token or certificate is good, and no principal"),
        "{told:?}"
    );
    let metrics = metrics(&planner).await;
    for reason in ["expired", "stranger"] {
        let line = format!("rfork_planner_requests_denied_total{{reason=\"{reason}\",refused=\"yes\"}} 2");
        assert!(metrics.contains(&line), "{metrics}");
    }
    planner.stop().await;
}

#[tokio::test]
async fn keys_change_and_an_issuer_is_away() {
    let home = tempfile::tempdir().unwrap();
    let (first, second) = (Key::ec("first"), Key::ec("second"));
    let issuer = Issuer::start(&[&first]).await;
    let planner = start(home.path(), &issuer).await;
    let (by_first, by_second) = (first.token(&claims(&json!({}))), second.token(&claims(&json!({}))));
    get_seed(&planner, &by_first, "a/m").await.is(404, "no available seed");
    assert_eq!(get_seed(&planner, &by_second, "a/m").await.status, 401, "its issuer has no such key");
    // Its first request finds the new key: no request fails because of a rotation.
    issuer.tells(Some(&[&first, &second]));
    get_seed(&planner, &by_second, "a/m").await.is(404, "no available seed");
    // Without its issuer what was known counts, and of what was not nobody says that it is wrong.
    issuer.tells(None);
    let third = Key::ec("third");
    let answer = get_seed(&planner, &third.token(&claims(&json!({}))), "a/m").await;
    assert_eq!((answer.status, answer.header("RETRY-AFTER")), (503, Some("1")), "{answer:?}");
    assert!(answer.body.starts_with("issuer-unavailable: "), "{answer:?}");
    assert!(
        metrics(&planner)
            .await
            .contains("rfork_planner_issuer_keys_good{issuer=\"https://issuer.example\"} 0")
    );
    for token in [&by_first, &by_second, &first.token(&claims(&json!({"more": 1})))] {
        get_seed(&planner, token, "a/m").await.is(404, "no available seed");
    }
    // What it tells that is no set of keys changes nothing.
    for wrong in ["", "{}", r#"{"keys": []}"#, "<html>", &format!("{{\"keys\": [{}]}}", "1,".repeat(200_000))]
    {
        *issuer.tells.lock().unwrap() = Some(wrong.into());
        assert_eq!(get_seed(&planner, &third.token(&claims(&json!({}))), "a/m").await.status, 503);
        get_seed(&planner, &by_first, "a/m").await.is(404, "no available seed");
    }
    // A key that is taken out ends what it signed, remembered or not.
    issuer.tells(Some(&[&second, &third]));
    get_seed(&planner, &third.token(&claims(&json!({}))), "a/m").await.is(404, "no available seed");
    assert_eq!(get_seed(&planner, &by_first, "a/m").await.status, 401);
    get_seed(&planner, &by_second, "a/m").await.is(404, "no available seed");
    assert!(
        metrics(&planner)
            .await
            .contains("rfork_planner_issuer_keys_good{issuer=\"https://issuer.example\"} 1")
    );
    planner.stop().await;
}

#[tokio::test]
async fn unknown_keys_make_few_requests_and_keep_nobody() {
    let home = tempfile::tempdir().unwrap();
    let known = Key::ec("known");
    let issuer = Issuer::start(&[&known]).await;
    let planner = Arc::new(start(home.path(), &issuer).await);
    let good = known.token(&claims(&json!({})));
    get_seed(&planner, &good, "a/m").await.is(404, "no available seed");
    let begun = std::time::Instant::now();
    let flood = (0..300).map(|number| {
        let (planner, token) = (
            planner.clone(),
            known.sign(&json!({"alg": "ES256", "kid": format!("k{number}")}), &claims(&json!({}))),
        );
        tokio::spawn(async move { get_seed(&planner, &token, "a/m").await.status })
    });
    let flood: Vec<_> = flood.collect();
    get_seed(&planner, &good, "a/m").await.is(404, "no available seed");
    let mut statuses = Vec::new();
    for one in flood {
        statuses.push(tokio::time::timeout(PATIENCE, one).await.unwrap().unwrap());
    }
    assert!(statuses.iter().all(|status| [401, 429, 503].contains(status)), "{statuses:?}");
    let unknown = known.sign(&json!({"alg": "ES256", "kid": "unknown"}), &claims(&json!({})));
    let decided = async { while get_seed(&planner, &unknown, "a/m").await.status == 503 {} };
    tokio::time::timeout(PATIENCE, decided).await.unwrap();
    // One at the start, one at once, and one each two seconds since.
    let most = 3 + usize::try_from(begun.elapsed().as_secs()).unwrap() / 2;
    assert!(issuer.asked() <= most, "{} of {most}", issuer.asked());
    Arc::into_inner(planner).unwrap().stop().await;
}

#[tokio::test]
async fn keys_in_a_file_are_read_again() {
    let home = tempfile::tempdir().unwrap();
    let (first, second) = (Key::ec("first"), Key::ed("second"));
    let file = home.path().join("jwks.json");
    std::fs::write(&file, Issuer::document(&[&first])).unwrap();
    let planner = start_with(home.path(), &format!("jwks_file = '{}'", file.display())).await;
    let (by_first, by_second) = (first.token(&claims(&json!({}))), second.token(&claims(&json!({}))));
    get_seed(&planner, &by_first, "a/m").await.is(404, "no available seed");
    std::fs::write(&file, Issuer::document(&[&second])).unwrap();
    get_seed(&planner, &by_second, "a/m").await.is(404, "no available seed");
    assert_eq!(get_seed(&planner, &by_first, "a/m").await.status, 401);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(get_seed(&planner, &by_first, "a/m").await.status, 503);
    get_seed(&planner, &by_second, "a/m").await.is(404, "no available seed");
    // An issuer that is taken out is nobody's, and a rule that changes counts for tokens that were seen before.
    let text = std::fs::read_to_string(home.path().join("tokens.toml")).unwrap();
    std::fs::write(home.path().join("tokens.toml"), text.replace("team-a:*", "team-b:*")).unwrap();
    let asking = async { while get_seed(&planner, &by_second, "a/m").await.status != 403 {} };
    tokio::time::timeout(PATIENCE, asking).await.unwrap();
    let without = text.split("[[principal]]").last().unwrap();
    std::fs::write(home.path().join("tokens.toml"), format!("[[principal]]{without}")).unwrap();
    let asking = async { while get_seed(&planner, &by_second, "a/m").await.status != 401 {} };
    tokio::time::timeout(PATIENCE, asking).await.unwrap();
    let asking = async { while metrics(&planner).await.contains("rfork_planner_issuer_keys_good{") {} };
    tokio::time::timeout(PATIENCE, asking).await.unwrap();
    planner.stop().await;
}
