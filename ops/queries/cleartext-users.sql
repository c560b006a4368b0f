-- Who would be locked out if passwords were taken inside TLS only? (tls is NULL in cleartext.)
SELECT account, count(*) AS sessions, max(ts) AS last, any_value(peer) AS address
FROM read_parquet(getvariable('archive'))
WHERE event = 'session_closed' AND tls IS NULL
GROUP BY account
ORDER BY sessions DESC;
