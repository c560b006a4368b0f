-- Is the cache getting better or worse? Sessions and what the cache did for them, day by day (UTC).
SELECT
    ts::DATE AS day,
    count(*) AS sessions,
    round(100 * count(*) FILTER (cache = 'hit') / count(*), 1) AS hit_percent,
    round(100 * count(*) FILTER (cache = 'refresh') / count(*), 1) AS refresh_percent,
    round(100 * count(*) FILTER (cache = 'rebuild') / count(*), 1) AS rebuild_percent,
    round(quantile_cont(cache_ms, 0.99), 1) AS p99_ms
FROM read_parquet(getvariable('archive'))
WHERE event = 'session_closed'
GROUP BY day
ORDER BY day;
