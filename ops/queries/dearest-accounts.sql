-- Whose maildrops take the most time to open, hits and all? What is their commonest reason?
SELECT
    account,
    count(*) AS sessions,
    round(sum(cache_ms) / 1000, 1) AS opening_s,
    max(messages) AS messages,
    mode(cache_reason) FILTER (cache <> 'hit') AS commonest_reason
FROM read_parquet(getvariable('archive'))
WHERE event = 'session_closed'
GROUP BY account
ORDER BY opening_s DESC
LIMIT 50;
