-- Accounts that exist and that guessers try from many addresses: candidates for a better password.
WITH guessed AS (
    SELECT "user" AS name, count(DISTINCT peer) AS addresses, sum(coalesce(times, 1)) AS refused
    FROM read_parquet(getvariable('archive'))
    WHERE event = 'login_refused' AND code = 'AUTH'
    GROUP BY name
)
SELECT name, addresses, refused
FROM guessed
WHERE addresses >= 3 AND name IN (
    SELECT "user" FROM read_parquet(getvariable('archive')) WHERE event = 'session_closed'
)
ORDER BY addresses DESC
LIMIT 50;
