-- The newest paid invoices of a tenant are still found by what stays in the row, and each leads to its payload or to
-- the reference that stands for it.
-- table: activities
SELECT coalesce(bool_and(public.get_activities_payload(hit.id) IS NOT NULL), TRUE)
FROM (
    SELECT id
    FROM public.activities
    WHERE tenant_id = 'acme'
        AND event = 'invoice.paid'
    ORDER BY created_at DESC
    LIMIT 20
) AS hit
