//! Variables of the environment that libpq has: those that are read here, and those that nobody may count on.

use super::InvalidDatabaseUrl;

/// Looks up a variable of the environment.
pub(super) type LookUp<'l> = &'l dyn Fn(&str) -> Option<String>;

/// Variables that say whom to connect to, as whom, or how securely, and that nothing here reads; with the values that
/// change nothing, and what to do instead.
const IGNORED: [(&str, &[&str], &str); 14] = [
    ("PGSERVICE", &[], "write host, user and database into the URL"),
    ("PGCHANNELBINDING", &["disable", "prefer"], "sslmode=verify-full protects against a server in between"),
    ("PGREQUIREAUTH", &[], "require it in pg_hba.conf"),
    ("PGREQUIREPEER", &[], "name the folder of a socket that nobody else can write to"),
    ("PGREQUIRESSL", &["0"], "write sslmode=require into the URL"),
    ("PGSSLNEGOTIATION", &["postgres"], "only the negotiation of PostgreSQL is known"),
    ("PGSSLCRL", &[], "revoked certificates are not looked up"),
    ("PGSSLCRLDIR", &[], "revoked certificates are not looked up"),
    ("PGSSLCERTMODE", &["allow"], "name certificate and key in the URL, or do not"),
    (
        "PGSSLMINPROTOCOLVERSION",
        &["TLSv1.2"],
        "TLS 1.2 is the oldest that is spoken; require more on the server",
    ),
    ("PGSSLMAXPROTOCOLVERSION", &["TLSv1.3"], "limit it on the server"),
    ("PGGSSENCMODE", &["disable", "prefer"], "GSSAPI is not spoken: use TLS"),
    ("PGKRBSRVNAME", &[], "GSSAPI is not spoken"),
    ("PGLOADBALANCEHOSTS", &["disable"], "espd uses the primary only"),
];

/// Refuses variables that libpq would heed and that would have no effect here.
pub(super) fn refuse_ignored(variable: LookUp<'_>) -> Result<(), InvalidDatabaseUrl> {
    for (name, harmless, advice) in IGNORED {
        let Some(value) = variable(name).filter(|value| !value.is_empty()) else { continue };
        if !harmless.contains(&value.as_str()) {
            let reason = format!("the environment has {name}, which is not supported: remove it; {advice}");
            return Err(InvalidDatabaseUrl::because(reason));
        }
    }
    refuse_misspelt(variable)
}

/// The driver takes its default where it does not understand one of these.
fn refuse_misspelt(variable: LookUp<'_>) -> Result<(), InvalidDatabaseUrl> {
    let refuse = |name: &str, advice: &str| {
        Err(InvalidDatabaseUrl::because(format!("the variable {name} is not understood: {advice}")))
    };
    if variable("PGSSLMODE").is_some_and(|mode| mode.parse::<sqlx::postgres::PgSslMode>().is_err()) {
        return refuse("PGSSLMODE", "write disable, allow, prefer, require, verify-ca or verify-full");
    }
    if variable("PGPORT").is_some_and(|port| port.parse::<u16>().is_err()) {
        return refuse("PGPORT", "write one port; several stand in the URL");
    }
    for name in ["PGHOST", "PGHOSTADDR"] {
        if variable(name).is_some_and(|host| host.contains(',')) {
            return refuse(name, "several hosts stand in the URL");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &'static str) -> Result<(), InvalidDatabaseUrl> {
        refuse_ignored(&move |asked| (asked == name).then(|| value.to_owned()))
    }

    #[test]
    fn what_would_be_ignored_is_refused_by_name() {
        for (name, value) in [
            ("PGSERVICE", "shop"),
            ("PGCHANNELBINDING", "require"),
            ("PGREQUIREAUTH", "scram-sha-256"),
            ("PGSSLMODE", "verify_full"),
            ("PGPORT", "5432,5433"),
            ("PGHOST", "one,two"),
        ] {
            let refusal = with(name, value).unwrap_err().to_string();
            assert!(refusal.contains(name), "{refusal}");
        }
        for (name, value) in [
            ("PGCHANNELBINDING", "prefer"),
            ("PGSERVICE", ""),
            ("PGSSLMODE", "verify-full"),
            ("PGPORT", "5433"),
            ("PGPASSWORD", "x"),
        ] {
            assert_eq!(with(name, value), Ok(()), "{name}={value}");
        }
    }
}
