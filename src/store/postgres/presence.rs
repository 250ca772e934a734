//! Whether the server answers at all, asked on a connection of its own, so that nothing else is waited for.

use std::sync::Arc;

use sqlx::Connection;
use sqlx::postgres::PgConnection;

use super::error::query_error;
use super::migrations::MIGRATIONS;
use super::open::Postgres;
use super::server::Server;
use crate::store::StoreError;

/// A server, and the connection on which it is asked whether it is there.
pub struct Presence {
    server: Arc<Server>,
    connection: Option<PgConnection>,
}

impl std::fmt::Debug for Presence {
    /// Without user and password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Presence").field(&self.server.place()).finish()
    }
}

impl Postgres {
    /// See [`crate::store::Store::presence`].
    pub fn presence(&self) -> Presence {
        Presence { server: Arc::new(self.pages.server().anew()), connection: None }
    }
}

impl Presence {
    /// Ends when the server has answered. When this is dropped before its end, the connection is given up.
    ///
    /// # Errors
    ///
    /// Those of connecting, and of a connection that has broken.
    pub async fn ask(&mut self) -> Result<(), StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.server.connect().await?,
        };
        connection.ping().await.map_err(query_error)?;
        self.connection = Some(connection);
        Ok(())
    }

    /// A store on it, on connections of its own, which are made when they are needed.
    pub fn store(&self) -> Postgres {
        Postgres::of(&Arc::new(self.server.anew()), &MIGRATIONS)
    }
}
