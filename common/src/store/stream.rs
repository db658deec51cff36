//! An output read as it comes, in flat memory however large it is.

use bytes::Bytes;
use futures_util::stream::{BoxStream, try_unfold};
use futures_util::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use sha2::{Digest, Sha256};

use super::{Store, failed, hex};
use crate::error::{Error, Kind, Result};
use crate::record::Stored;

/// The pieces of an output, in order.
pub type Pieces = BoxStream<'static, Result<Bytes>>;

impl Store {
    /// As [`Store::get_output`], a piece at a time: that the bytes are those which were stored is known at the end
    /// alone, where a stream of others ends in `Corrupt`.
    pub async fn stream_output(&self, stored: &Stored) -> Result<Pieces> {
        const OP: &str = "fetch an output";
        let (path, key) = (self.path(&stored.key)?, stored.key.clone());
        let corrupt = move || Error::new(Kind::Corrupt, OP, format!("{key} is not what was stored there"));
        let found = match self.objects.get(&path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => {
                return Err(Error::new(Kind::NotFound, OP, format!("{} is not in the store", stored.key)));
            }
            Err(error) => return Err(failed(OP, &path, error)),
        };
        if found.meta.size != stored.bytes {
            return Err(corrupt());
        }
        let wanted = stored.sha256.clone();
        let pieces = found.into_stream().map_err(move |error| failed(OP, &path, error)).boxed();
        let checked = try_unfold((pieces, Sha256::new()), move |(mut pieces, mut hash)| {
            let (wanted, corrupt) = (wanted.clone(), corrupt.clone());
            async move {
                if let Some(piece) = pieces.try_next().await? {
                    hash.update(&piece);
                    return Ok(Some((piece, (pieces, hash))));
                }
                if hex(&hash.finalize()) == wanted { Ok(None) } else { Err(corrupt()) }
            }
        });
        Ok(checked.boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::LeaseId;
    use crate::job::JobId;
    use crate::outcome::Body;

    async fn read(store: &Store, stored: &Stored) -> Result<Vec<u8>> {
        let pieces: Vec<Bytes> = store.stream_output(stored).await?.try_collect().await?;
        Ok(pieces.concat())
    }

    #[tokio::test]
    async fn an_output_comes_in_pieces_and_one_that_was_changed_ends_in_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(url::Url::from_file_path(folder.path()).unwrap().as_str()).await.unwrap();
        let text = "grüße ".repeat(100_000);
        let stored = store.put_output(JobId::fresh(), LeaseId::random(), &Body::Text(text.clone())).await.unwrap();
        assert_eq!(read(&store, &stored).await.unwrap(), text.as_bytes());
        store.put(&stored.key, text.replace('g', "G").into_bytes()).await.unwrap();
        let mut pieces = store.stream_output(&stored).await.unwrap();
        assert!(pieces.try_next().await.is_ok(), "its beginning is on its way before its end is known");
        assert_eq!(read(&store, &stored).await.unwrap_err().kind(), Kind::Corrupt);
        store.put(&stored.key, b"short".to_vec()).await.unwrap();
        assert_eq!(read(&store, &stored).await.unwrap_err().kind(), Kind::Corrupt);
        store.delete(std::slice::from_ref(&stored.key)).await.unwrap();
        assert_eq!(read(&store, &stored).await.unwrap_err().kind(), Kind::NotFound);
    }
}
