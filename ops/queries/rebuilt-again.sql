-- Whose cache was there and had to be made anew, again and again? A first rebuild is normal, further ones are not.
SELECT
    account,
    count(*) AS rebuilds,
    list(DISTINCT cache_reason) AS reasons,
    min(ts) AS first,
    max(ts) AS last
FROM read_parquet(getvariable('archive'))
WHERE event = 'session_closed' AND cache = 'rebuild'
GROUP BY account
HAVING count(*) > 1
ORDER BY rebuilds DESC
LIMIT 50;
