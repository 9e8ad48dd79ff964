-- How strongly the stages of networks were matched in an epoch, where that is learned: the means over samples and steps
-- of the terms `lambda.STAGE.SOURCE.SOURCE_STAGE`. A source's name may contain dots and digits, its stage only digits.
CREATE VIEW IF NOT EXISTS matching (peer, epoch, stage, source, source_stage, mean, steps) AS
WITH pairs AS (
  SELECT peer, step, value,
         substr(name, 8, instr(substr(name, 8), '.') - 1) AS stage,
         substr(name, 8 + instr(substr(name, 8), '.')) AS rest
  FROM terms WHERE name GLOB 'lambda.[0-9]*.?*.[0-9]*'
)
SELECT peer, epoch, CAST(stage AS INTEGER),
       substr(rest, 1, length(rtrim(rest, '0123456789')) - 1),
       CAST(substr(rest, length(rtrim(rest, '0123456789')) + 1) AS INTEGER),
       avg(value), count(value)
FROM pairs JOIN steps USING (peer, step) GROUP BY 1, 2, 3, 4, 5;
