mod contract {
    use plc_replica::store::Store;
    use plc_testkit::postgres::Database;
    use tempfile::TempDir;
    pub enum Place { Sqlite(TempDir), Postgres(Database) }
    impl Place {
        pub fn sqlite() -> Option<Place> { Some(Place::Sqlite(tempfile::tempdir().unwrap())) }
        pub async fn postgres() -> Option<Place> { Database::create().await.map(Place::Postgres) }
        pub async fn open(&self) -> Store {
            let url = match self {
                Place::Sqlite(folder) => format!("sqlite://{}", folder.path().join("plc.db").display()),
                Place::Postgres(database) => database.url.clone(),
            };
            Store::open(&url).await.unwrap()
        }
    }
}
#[path = "it/convergence.rs"]
mod convergence;
