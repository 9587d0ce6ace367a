-- The prediction of next month's tenders reads the amounts in the documents themselves: this table keeps them in its
-- rows, and none may have made way for a reference.
-- table: TendersCurrent
WITH monthly AS (
    SELECT
        date_trunc('month', "publishedAt") AS month,
        count(*) AS notices,
        count(*) FILTER (WHERE document ->> 'payload_type' IS DISTINCT FROM 'storage_ref') AS documents,
        avg((document #>> '{estimated_value,amount}')::numeric) FILTER (
            WHERE jsonb_typeof(document #> '{estimated_value,amount}') = 'number'
        ) AS average_amount
    FROM public."TendersCurrent"
    GROUP BY 1
),
prediction AS (
    SELECT
        sum(notices) AS notices,
        sum(documents) AS documents,
        regr_slope(average_amount, extract(epoch FROM month)) AS trend
    FROM monthly
)
SELECT notices IS NOT DISTINCT FROM documents
FROM prediction
