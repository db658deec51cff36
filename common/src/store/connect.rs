//! URL to store: the only place that lists the services.

use std::str::FromStr;
use std::sync::Arc;

use object_store::ClientConfigKey;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{ObjectStore, RetryConfig};
use url::Url;

use super::Store;
use super::folder::Folder;
use crate::error::{Error, Kind, Result};
use crate::tls;

const OP: &str = "open the store";

/// One request's longest time: a part of 8 MiB at 28 kB/s. The driver's own 30 s gives up on slow lines.
const TIMEOUT: &str = "300 seconds";

impl Store {
    /// Opens `file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` or `memory://`.
    /// Credentials and endpoints of the services come from their usual variables (`AWS_*`, `GOOGLE_*`, `AZURE_*`),
    /// which the crate `object_store` reads by itself. No connection is made yet; see [`Store::probe`].
    ///
    /// # Errors
    /// `Config` for an address, a right or a credential a person has to mend.
    pub async fn open(url: &str) -> Result<Self> {
        Self::open_with(url, &[]).await
    }

    /// As [`Store::open`], with settings that count more than the variables, named like them in any case:
    /// `("aws_endpoint", "http://127.0.0.1:9000")`. An unknown name is an error of kind `Config`.
    pub async fn open_with(url: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let parsed = Url::parse(url).map_err(|error| bad("it is not a URL").because(error))?;
        if parsed.query().is_some() || parsed.fragment().is_some() || parsed.password().is_some() {
            return Err(bad("it takes no ?, # or password; credentials come from the service's variables"));
        }
        let service: Arc<dyn ObjectStore> = match parsed.scheme() {
            "memory" => return Ok(Self::memory()),
            "file" => return folder(&parsed).await,
            "s3" => Arc::new(s3(bucket(&parsed)?, settings)?),
            "gs" => Arc::new(gs(bucket(&parsed)?, settings)?),
            "az" => Arc::new(az(bucket(&parsed)?, settings)?),
            scheme => return Err(bad(&format!("no store speaks {scheme}://"))),
        };
        let root = Path::from_url_path(parsed.path()).map_err(|error| bad("its path is no key").because(error))?;
        Ok(Self { objects: service, root, folder: None })
    }
}

async fn folder(url: &Url) -> Result<Store> {
    let path = url.to_file_path().map_err(|()| bad("a folder is written with three slashes"))?;
    let folder = Folder::open(path).await?;
    Ok(Store { objects: Arc::new(folder.objects()), root: Path::default(), folder: Some(folder) })
}

fn s3(bucket: &str, settings: &[(&str, &str)]) -> Result<impl ObjectStore> {
    tls::install();
    let mut builder = AmazonS3Builder::from_env()
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), TIMEOUT)
        .with_bucket_name(bucket)
        .with_retry(retries());
    for (key, value) in settings {
        builder = builder.with_config(setting(key)?, *value);
    }
    builder.build().map_err(unusable)
}

fn gs(bucket: &str, settings: &[(&str, &str)]) -> Result<impl ObjectStore> {
    tls::install();
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_config(GoogleConfigKey::Client(ClientConfigKey::Timeout), TIMEOUT)
        .with_bucket_name(bucket)
        .with_retry(retries());
    for (key, value) in settings {
        builder = builder.with_config(setting(key)?, *value);
    }
    builder.build().map_err(unusable)
}

fn az(container: &str, settings: &[(&str, &str)]) -> Result<impl ObjectStore> {
    tls::install();
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_config(AzureConfigKey::Client(ClientConfigKey::Timeout), TIMEOUT)
        .with_container_name(container)
        .with_retry(retries());
    for (key, value) in settings {
        builder = builder.with_config(setting(key)?, *value);
    }
    builder.build().map_err(unusable)
}

fn setting<K: FromStr>(key: &str) -> Result<K> {
    key.to_ascii_lowercase()
        .parse()
        .map_err(|_| Error::new(Kind::Config, OP, format!("{key:?} is not a setting of this service")))
}

/// Few: the caller repeats a settle for as long as it takes, and sees the trouble sooner this way.
fn retries() -> RetryConfig {
    RetryConfig { max_retries: 3, ..RetryConfig::default() }
}

fn bucket(url: &Url) -> Result<&str> {
    url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| bad("no bucket is named"))
}

/// The URL itself stays out: it may hold a password.
fn bad(why: &str) -> Error {
    Error::new(
        Kind::Config,
        OP,
        format!(
            "{why}; write file:///path, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or memory://"
        ),
    )
}

fn unusable(error: object_store::Error) -> Error {
    Error::new(Kind::Config, OP, "the service's settings do not fit together").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_a_person_must_mend_are_refused_without_being_repeated() {
        for url in ["", "nothing", "ftp://h/x", "s3://", "file://here/x", "s3://k:secret@bucket/x", "s3://b/x?y=secret"]
        {
            let error = Store::open(url).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{url}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_bucket_and_its_prefix_are_taken_from_the_url() {
        let store = Store::open("s3://bucket/some/prefix/").await.unwrap();
        assert_eq!(store.root.as_ref(), "some/prefix");
        assert_eq!(store.path("out/x").unwrap().as_ref(), "some/prefix/out/x");
        let error = Store::open_with("s3://bucket/", &[("aws_endpont", "x")]).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
    }
}
