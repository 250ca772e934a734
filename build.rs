//! Says what the SQL in the program is checked against while it is built.

fn main() {
    // The migrations are part of the program, and `.sqlx` is what the statements looked like when they
    // were last checked against a database with these migrations.
    println!("cargo::rerun-if-changed=migrations");
    println!("cargo::rerun-if-changed=.sqlx");
    // DATABASE_URL is where the program keeps its log. A build has no business there, so that
    // statements are checked against `.sqlx` unless SQLX_OFFLINE says otherwise, as `.ci/sql` does.
    println!("cargo::rerun-if-env-changed=SQLX_OFFLINE");
    println!("cargo::rerun-if-env-changed=SQLX_OFFLINE_DIR");
    if std::env::var_os("SQLX_OFFLINE").is_none() {
        println!("cargo::rustc-env=SQLX_OFFLINE=true");
    }
}
