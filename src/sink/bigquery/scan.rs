//! Reading the table as `verify` does: every row below a place of the stream.

use super::auth::Credentials;
use super::config::BigQueryConfig;
use super::rest::Rest;
use crate::error::Result;
use crate::lsn::Lsn;

/// Gives `columns`, SQL expressions, of every row whose commit lies below `end`, page by page, each cell as text.
pub async fn rows(
    config: &BigQueryConfig,
    columns: &[String],
    end: Lsn,
    page: impl FnMut(&[Vec<Option<String>>]) -> Result<()>,
) -> Result<()> {
    let credentials = match config.rest_url.starts_with("http://") {
        true => Credentials::None,
        false => Credentials::load(&config.credentials_file).await?,
    };
    let rest = Rest::new(config, credentials).await?;
    let (columns, table) = (columns.join(", "), config.sql_table());
    rest.pages(&format!("SELECT {columns} FROM {table} WHERE commit_lsn < {}", end.0), page).await
}
